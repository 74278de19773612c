"""The `rollout` command: every prompt answered once, in order, alike on every layout."""

import json

import pytest

from rest_megatron.rollout.sampler import Sampler
from tests.distributed.training_cases import ScriptedEngine, read_metrics
from tests.distributed.training_runs import CUT, run

SIZES = ["rollout.prompts_per_step=3", "rollout.group_size=2"]


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "rollout.jsonl").read_text().splitlines()]


def test_every_prompt_is_answered_in_order_and_scored_where_the_ramp_ends(pool, tmp_path):
    settings = [*SIZES, "reward.overlong_buffer=0", "train.steps=50"]
    run_dir = run(pool, tmp_path / "one", 1, "rollout", overrides=settings, engine=ScriptedEngine)
    rows = rows_of(run_dir)
    assert [row["prompt"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    right = [row for row in rows if row["reason"] == "ok"]
    assert right and all((row["score"], row["format"], row["correctness"]) == (4.0, 1.0, 3.0) for row in right)
    assert all(len(row["ids"]) == len(row["log_probs"]) and row["parts"] and row["text"] for row in rows)
    first, last = read_metrics(run_dir)
    assert (first["rollout/answers"], last["rollout/answers"]) == (6, 2)
    assert first["reward/mean"] == pytest.approx(sum(row["score"] for row in rows[:6]) / 6)
    assert last["rollout/length"] == pytest.approx(sum(len(row["ids"]) for row in rows[6:]) / 2)
    assert not (run_dir / "hf").exists() and not (run_dir / "rollouts").exists()


def test_the_answers_are_the_same_on_every_layout(pool, tmp_path):
    found = []
    for name, world_size, layout in (("one", 1, []), ("cut", 4, CUT), ("data", 2, [])):
        run_dir = run(pool, tmp_path / name, world_size, "rollout", overrides=[*SIZES, *layout], engine=Sampler)
        found.append(rows_of(run_dir))
    alone = found[0]
    assert len({tuple(row["ids"]) for row in alone}) == 8
    for other in found[1:]:
        for row, want in zip(other, alone, strict=True):
            assert row.pop("log_probs") == pytest.approx(want["log_probs"], abs=1e-5)
            assert row == {name: value for name, value in want.items() if name != "log_probs"}
