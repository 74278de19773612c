"""What a run writes to its terminal or its scheduler's log stays small, whatever goes wrong how often."""

import pytest

from rest_megatron.distributed.launch import free_port

STEPS = 10
LINE = 300
"""Characters of a step's own line."""
WARNINGS = 300
"""Of all warnings of a step."""


def per_step(job, steps: int = STEPS) -> float:
    """Bytes written for each step, without what comes after the last one."""
    lines = job.output().splitlines(keepends=True)
    numbers = [number for number, line in enumerate(lines) if line.startswith("step ")]
    assert len(numbers) == steps, job.output()
    return len("".join(lines[: numbers[-1] + 1]).encode()) / steps


def test_a_step_writes_one_line(task, start):
    job = start(task.train(f"train.steps={STEPS}", "train.eval_interval=1"))
    assert job.wait() == [0], job.output()
    assert 50 < per_step(job) < LINE


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_warning_in_every_step_stays_short(task, start, ranks):
    """A judge that is not there, and answers that raise alarms in one step after the other."""
    url = f"http://127.0.0.1:{free_port()}/{'x' * 2000}"
    judge = [f"reward.judge_url={url}", "reward.judge_model=m", "reward.judge_weight=1"]
    alarms = ["alarms.window=1", "alarms.min_length_ratio=0.99", "alarms.max_mismatch=1e-12"]
    job = start(task.train(f"train.steps={STEPS}", *judge, *alarms), ranks=ranks)
    assert set(job.wait()) == {0}, job.output()
    assert per_step(job) < LINE + WARNINGS


def test_a_long_error_is_cut(task, start):
    (task.directory / "mine.py").write_text(
        "def reward(response, ground_truth, *, progress, step):\n    raise ValueError('x' * 1_000_000)\n"
    )
    job = start(task.train("reward.function=mine.py:reward"))
    assert job.wait() == [3]
    assert len(job.output()) < 2000
