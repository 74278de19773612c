"""A run that is stopped anywhere and started again ends as the one that was never stopped."""

import json

import pytest

from rest_megatron.errors import ConfigError
from tests.distributed.resume_cases import SeededEngine, outcome, ran, ran_until_killed_in
from tests.distributed.training_cases import read_metrics
from tests.system.runs import make_run

TP2, PP2 = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
BF16 = "model.dtype=bfloat16"
VPP2 = "parallel.virtual_pipeline_model_parallel_size=2"
MEASURED = ["weights.rule=measured", "weights.freeze_after=2", "weights.measure_every=1", "rollout.prompts_per_step=4"]
LAYOUTS = {
    "one": (1, []),
    "one, bf16": (1, [BF16]),
    "tp2": (2, [TP2]),
    "pp2, tied": (2, [PP2]),
    "pp2 vpp2": (2, [PP2, VPP2]),
    "dp2": (2, []),
    "dp2, bf16, measured": (2, [BF16, *MEASURED]),
    "tp2 pp2": (4, [TP2, PP2]),
}
STEPS = 4


def arguments(directory, name: str, *more: str) -> list[str]:
    """Four steps with evaluations and two mini-batches each; another checkpoint than those of a stop after two."""
    settings = [
        f"run.dir={directory / name}",
        f"data.eval={directory / 'rows.jsonl'}",
        f"train.steps={STEPS}",
        "train.eval_interval=2",
        "train.mini_batch_size=4",
        "rollout.group_size=4",
        "rollout.max_new_tokens=48",
        "train.max_tokens_per_micro_batch=128",
        "checkpoint.interval=2",
        "checkpoint.keep=9",
        "optim.schedule=linear",
    ]
    return [*make_run(directory), *settings, *more]


def until_done(pool, world: int, words: list[str], engine, stops, command: str = "train") -> int:
    """Run, stopped at each of `stops` in turn, to the end; returns how many times it was stopped."""
    stopped = 0
    for stop in stops:
        looked = pool.run(ran, world, command, words, engine, stop)[0]
        if looked >= 0:
            return stopped
        stopped += 1
    assert pool.run(ran, world, command, words, engine, 0)[0] >= 0
    return stopped


def same(ours: dict, theirs: dict) -> None:
    """What differs is named, not shown: it is long."""
    for part in theirs:
        if isinstance(theirs[part], dict):
            assert ours[part].keys() == theirs[part].keys()
            assert [name for name, value in theirs[part].items() if ours[part][name] != value] == [], part
        else:
            assert ours[part] == theirs[part], part


SLOW = ("one", "tp2", "dp2", "pp2, tied")


@pytest.mark.parametrize("layout", [pytest.param(x, marks=[pytest.mark.slow] if x in SLOW else []) for x in LAYOUTS])
def test_stopped_twice_and_resumed_equals_the_unbroken_run_bit_for_bit(pool, tmp_path, layout):
    world, words = LAYOUTS[layout]
    looks = pool.run(ran, world, "train", arguments(tmp_path, "straight", *words), SeededEngine)[0]
    broken = arguments(tmp_path, "broken", *words)
    assert until_done(pool, world, broken, SeededEngine, (looks // 3, looks // 3)) == 2
    same(outcome(tmp_path / "broken", STEPS), outcome(tmp_path / "straight", STEPS))


def test_wherever_it_is_stopped_the_run_ends_alike(pool, tmp_path):
    words = ["train.steps=2", "train.eval_interval=1", "rollout.max_new_tokens=24"]
    looks = pool.run(ran, 1, "train", arguments(tmp_path, "straight", *words), None)[0]
    expected = outcome(tmp_path / "straight", 2)
    assert looks > 20
    for stop in range(1, looks, max(1, looks // 5)):
        broken = arguments(tmp_path, f"broken-{stop}", *words)
        assert until_done(pool, 1, broken, None, (stop,)) == 1
        same(outcome(tmp_path / f"broken-{stop}", 2), expected)


def test_a_run_that_is_stopped_again_and_again_makes_progress_and_ends_alike(pool, tmp_path):
    words = ["train.steps=2", "train.eval_interval=0"]
    pool.run(ran, 1, "train", arguments(tmp_path, "straight", *words), SeededEngine)
    stopped = until_done(pool, 1, arguments(tmp_path, "broken", *words), SeededEngine, range(4, 40))
    assert 3 < stopped < 36
    same(outcome(tmp_path / "broken", 2), outcome(tmp_path / "straight", 2))


def test_background_saves_end_in_the_same_run(pool, tmp_path):
    looks = pool.run(ran, 2, "train", arguments(tmp_path, "straight"), SeededEngine)[0]
    broken = arguments(tmp_path, "broken", "checkpoint.background=true", "checkpoint.interval=1")
    assert until_done(pool, 2, broken, SeededEngine, (looks // 2,)) == 1
    same(outcome(tmp_path / "broken", STEPS), outcome(tmp_path / "straight", STEPS))


def test_a_supervised_run_resumes_bit_for_bit(pool, tmp_path):
    world, words = 2, ["sft.steps=5", "sft.batch_size=3"]
    looks = pool.run(ran, world, "sft", arguments(tmp_path, "straight", *words), None)[0]
    broken = arguments(tmp_path, "broken", *words)
    assert until_done(pool, world, broken, None, (looks // 3, looks // 3), "sft") == 2
    same(outcome(tmp_path / "broken", 5), outcome(tmp_path / "straight", 5))


def test_a_finished_run_is_refused_and_goes_on_to_more_steps_where_that_is_allowed(pool, tmp_path):
    words = arguments(tmp_path, "run")
    pool.run(ran, 1, "train", words, SeededEngine)
    with pytest.raises(AssertionError, match="finished: step 4 of 4, exported to hf; nothing to do"):
        pool.run(ran, 1, "train", words, SeededEngine)
    with pytest.raises(AssertionError, match="train.steps=6 differs from 4"):
        pool.run(ran, 1, "train", [*words, "train.steps=6"], SeededEngine)
    with pytest.raises(AssertionError, match="train.steps=3 is less than the 4 steps"):
        pool.run(ran, 1, "train", [*words, "train.steps=3", "checkpoint.allow_changes=true"], SeededEngine)
    more = [*words, "train.steps=6", "train.eval_interval=0", "checkpoint.allow_changes=true"]
    old = (tmp_path / "run" / "hf" / "model.safetensors").read_bytes()
    # Saved after the last step, but not exported: the directory hf is still that of four steps.
    looks = pool.run(ran, 1, "train", [*more, f"run.dir={tmp_path / 'probe'}"], SeededEngine)[0]
    until_done(pool, 1, more, SeededEngine, (looks * 2 // 5,))
    assert (tmp_path / "run" / "hf" / "model.safetensors").read_bytes() != old
    with pytest.raises(AssertionError, match="finished: step 6 of 6"):
        pool.run(ran, 1, "train", more, SeededEngine)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    evaluations = (tmp_path / "run" / "eval.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in evaluations] == [0, 2, 4, 6]


@pytest.mark.parametrize("place", ["session.Session.export", "commands.train.write_report"])
def test_a_run_that_is_killed_in_its_last_export_or_its_report_is_not_a_finished_one(pool, tmp_path, place):
    words = arguments(tmp_path, "run", "train.steps=1")
    pool.run(ran, 1, "train", words, SeededEngine)
    more = [*words, "train.steps=2", "checkpoint.allow_changes=true"]
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(AssertionError, match=f"killed in rest_megatron.{place}"):
        pool.run(ran_until_killed_in, 1, f"rest_megatron.{place}", "train", more, SeededEngine)
    assert pool.run(ran, 1, "train", more, SeededEngine)[0] > 0
    with pytest.raises(AssertionError, match="finished: step 2"):
        pool.run(ran, 1, "train", more, SeededEngine)
    assert (tmp_path / "run" / "report.html").exists()


def test_an_older_checkpoint_of_the_same_directory_is_refused_by_name(pool, tmp_path):
    words = arguments(tmp_path, "run")
    assert pool.run(ran, 1, "train", words, SeededEngine, 40)[0] == -1
    older = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[0]
    with pytest.raises(AssertionError, match="is not the newest checkpoint of run.dir"):
        pool.run(ran, 1, "train", [*words, f"checkpoint.resume={older}"], SeededEngine)


def stopped_with_answers(pool, run_dir, words: list[str]) -> list[str]:
    """Stop a run in the update of a step, whose answers are scored; the lines in which its checkpoint keeps them."""
    for stop in range(1, 40):
        assert pool.run(ran, 1, "train", words, SeededEngine, stop)[0] == -1
        if kept := list((run_dir / "checkpoints").glob("step-*/experience.jsonl")):
            return kept[0].read_text().splitlines()
    raise AssertionError("was never stopped in an update")


def test_scored_answers_of_the_step_in_flight_are_kept_though_no_float32_holds_their_rewards(pool, tmp_path):
    (tmp_path / "huge.py").write_text(
        "def reward(response, ground_truth, *, progress, step):\n    return 1e39 * len(response)\n"
    )
    words = arguments(tmp_path, "run", f"reward.function={tmp_path}/huge.py:reward", "train.eval_interval=0")
    assert len(stopped_with_answers(pool, tmp_path / "run", words)) == 8
    assert pool.run(ran, 1, "train", words, SeededEngine)[0] > 0


def test_a_change_that_is_allowed_skips_no_prompts(pool, tmp_path):
    """Stopped in a step: its prompts are answered again."""
    words = arguments(tmp_path, "run", "checkpoint.allow_changes=true", "train.eval_interval=0")
    stopped_with_answers(pool, tmp_path / "run", words)
    assert pool.run(ran, 1, "train", [*words, "optim.lr=2e-3"], SeededEngine)[0] > 0
    cursor = outcome(tmp_path / "run", STEPS)["state"]["train"]["cursor"]
    assert cursor["position"] == 2 * STEPS


def test_another_run_directory_starts_from_a_named_checkpoint(pool, tmp_path):
    pool.run(ran, 1, "train", arguments(tmp_path, "straight"), SeededEngine)
    named = f"checkpoint.resume={tmp_path / 'straight' / 'checkpoints' / 'step-00000002'}"
    pool.run(ran, 1, "train", arguments(tmp_path, "fork", named), SeededEngine)
    assert read_metrics(tmp_path / "fork") == read_metrics(tmp_path / "straight")[2:]
    assert outcome(tmp_path / "fork", STEPS)["tensors"] == outcome(tmp_path / "straight", STEPS)["tensors"]


def test_other_data_is_refused(pool, tmp_path):
    words = arguments(tmp_path, "run")
    assert pool.run(ran, 1, "train", words, SeededEngine, 25)[0] == -1
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("alarm on Monday for 2", "alarm on Monday for 7"))
    with pytest.raises(AssertionError, match="data.train=.*gives other rows than those"):
        pool.run(ran, 1, "train", words, SeededEngine)


def test_a_directory_whose_checkpoints_are_all_damaged_is_not_started_anew(pool, tmp_path):
    words = arguments(tmp_path, "run")
    assert pool.run(ran, 1, "train", words, SeededEngine, 25)[0] == -1
    for path in (tmp_path / "run" / "checkpoints").glob("step-*/state/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="holds checkpoints, but none of them is whole"):
        pool.run(ran, 1, "train", words, SeededEngine)
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0


def test_a_directory_with_an_earlier_run_is_refused_where_none_may_be_resumed(pool, tmp_path):
    words = arguments(tmp_path, "run", "checkpoint.resume=never", "train.steps=1")
    pool.run(ran, 1, "train", words, SeededEngine)
    with pytest.raises(AssertionError, match=ConfigError.kind + ".*holds the checkpoints of an earlier run"):
        pool.run(ran, 1, "train", words, SeededEngine)
