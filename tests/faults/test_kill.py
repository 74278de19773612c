"""SIGKILL to a whole job, again and again: it loses steps, never its way."""

import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.faults.jobs import Job
from tests.faults.task import Task, assert_same, outcome
from tests.waiting import until

STEPS = 8


def kill_while_saving(job: Job, task: Task, rng: random.Random) -> None:
    """Wait until a checkpoint is being written, or an unfinished one removed, and kill within the time that takes."""
    started = time.time()
    until(lambda: any(changed_after(started, path) for path in task.checkpoints.glob("*.tmp")) or not job.runs())
    time.sleep(rng.uniform(0.0, 0.12))
    job.kill()


def changed_after(moment: float, path: Path) -> bool:
    """Whether a directory that may vanish was changed since."""
    try:
        return path.stat().st_ctime > moment
    except FileNotFoundError:
        return False


def kill_anywhere(job: Job, task: Task, rng: random.Random) -> None:
    """Kill while it starts, or within its first steps, each of which writes a line."""
    written, lines = job.output().count("\n"), rng.randrange(4)
    until(lambda: job.output().count("\n") >= written + lines or not job.runs())
    time.sleep(rng.uniform(0.0, 0.2 if lines else 1.0))
    job.kill()


@pytest.mark.parametrize(
    "kills, ranks, background",
    [
        (5, 1, False),
        *(
            pytest.param(50, ranks, background, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])
            for ranks, background in ((1, False), (1, True), (2, False))
        ),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_where_it_would_have(task, straight, start, kills, ranks, background):
    rng = random.Random(kills + ranks + background)
    overrides = ["parallel.tensor_model_parallel_size=2"] if ranks == 2 else []
    overrides += [f"train.steps={STEPS}", f"checkpoint.background={str(background).lower()}"]
    restarts = 0
    for number in range(kills + 1):
        job = start(task.train(*overrides), ranks=ranks)
        if number < kills:
            (kill_while_saving if number % 2 else kill_anywhere)(job, task, rng)
        codes = set(job.wait())
        restarts += went_on(job.output())
        if -signal.SIGKILL in codes:
            continue
        # It had ended before it was killed, or in an earlier start, after its last file was written.
        assert codes == {0}, job.output()
        assert_same(outcome(task.run_dir), straight(ranks, *overrides))
        shutil.rmtree(task.run_dir)
        for path in job.outputs:
            path.unlink()
    assert restarts >= max(1, kills // 4)


def went_on(output: str) -> bool:
    """Whether the last start went on; every start did from a checkpoint that is whole, none earlier than the last."""
    assert "is skipped" not in output and "Traceback" not in output, output
    steps = [int(step) for step in re.findall(r"resuming after step (\d+) of", output)]
    assert steps == sorted(steps), output
    return bool(steps)
