"""Training taken apart: answers without training, and training on saved answers, alike on every layout."""

import json

import pytest

from tests.distributed.training_cases import NoEngine, NoisyEngine, read_metrics
from tests.distributed.training_runs import CUT, run

# Groups of two, of which every third has two answers that score alike.
REWARD = "def reward(response, ground_truth, *, progress, step):\n    return (1 + step) * float('Monday' in response)\n"
CORRECTED = ["algorithm.importance_cap=1.5", "algorithm.importance_mask=1.6"]
SETTINGS = [*CORRECTED, "train.steps=3", "rollout.group_size=2", "rollout.prompts_per_step=3"]
SETTINGS += ["algorithm.zero_variance=refill", "train.mini_batch_size=2"]
SAMPLED = ("prompt", "ids", "log_probs", "finish_reason", "weight_version", "score", "parts", "trained", "rounds")


def settings(directory, *more):
    (directory / "mine.py").write_text(REWARD)
    return [*SETTINGS, f"reward.function={directory}/mine.py:reward", *more]


def answers(run_dir):
    """What was sampled in each step, row by row."""
    steps = [(run_dir / f"rollouts/step-{n}.jsonl").read_text().splitlines() for n in (1, 2, 3)]
    return [[{name: json.loads(line)[name] for name in SAMPLED} for line in lines] for lines in steps]


def same(rows, expected):
    assert len(rows) == len(expected) == 3
    for row, want in zip(rows, expected, strict=True):
        assert row == pytest.approx(want, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def dumped(pool, tmp_path_factory):
    """The directory of a run that sampled, and updated nothing; it had held-out prompts."""
    directory = tmp_path_factory.mktemp("dump")
    words = settings(directory, "train.debug=rollout_only", f"data.eval={directory}/one/rows.jsonl")
    return run(pool, directory / "one", 1, overrides=words, engine=NoisyEngine)


def test_rollouts_alone_are_dumped_and_measured_and_nothing_else_happens(dumped):
    rows = [json.loads(line) for line in (dumped / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert min(row[name] for name in ("reward/mean", "rollout/length", "rollout/tokens_per_second")) > 0
        assert not any(name.startswith(("actor/", "weight/", "mismatch/", "time/update")) for name in row)
    found = answers(dumped)
    assert {row["weight_version"] for step in found for row in step} == {0}
    assert [step[0]["rounds"] for step in found] == [3, 2, 4]
    assert {row["trained"] for step in found for row in step} == {True, False}
    assert not (dumped / "eval.jsonl").exists() and (dumped / "report.html").exists()
    assert not (dumped / "hf").exists()


def test_saved_answers_train_alike_on_every_layout(pool, tmp_path, dumped):
    words = settings(tmp_path, "train.debug=train_only", f"train.replay={dumped}/rollouts")
    found = {}
    for name, world_size, layout in (("one", 1, []), ("cut", 4, CUT), ("data", 2, [])):
        run_dir = run(pool, tmp_path / name, world_size, overrides=[*words, *layout], engine=NoEngine)
        assert answers(run_dir) == answers(dumped)
        assert (run_dir / "hf/config.json").exists()
        found[name] = read_metrics(run_dir)
    assert all(row["actor/grad_norm"] > 0 and row["mismatch/mean"] > 0.1 for row in found["one"])
    assert [row["rollout/weight_version"] for row in found["one"]] == [0, 0, 0]
    assert [row["rollout/weight_lag"] for row in found["one"]] == [0, 3, 6]
    same(found["cut"], found["one"])
    same(found["data"], found["one"])


def test_a_training_run_s_own_answers_train_as_they_did(pool, tmp_path):
    first = run(pool, tmp_path / "first", 1, overrides=settings(tmp_path), engine=NoisyEngine)
    words = settings(tmp_path, "train.debug=train_only", f"train.replay={first}/rollouts")
    second = run(pool, tmp_path / "second", 1, overrides=words, engine=NoEngine)
    assert answers(second) == answers(first)
    same(read_metrics(second), read_metrics(first))
