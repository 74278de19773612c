"""A place that cannot be written or read, and a clock that goes back."""

import ctypes
import time
from functools import partial

import pytest

from tests.faults.task import STEPS
from tests.system.runs import metrics

# Of linux/capability.h: the second version of capset, and what lets root ignore the bits of a mode.
CAPABILITY_VERSION = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def obey_modes() -> None:
    """Let a mode of read-only hold for root, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        sets[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), "capset")


def read_only(task) -> None:
    task.run_dir.mkdir(mode=0o555)


def read_only_parent(task) -> None:
    task.run_dir.parent.mkdir(mode=0o555)


def below_a_file(task) -> None:
    task.run_dir.parent.write_text("")


def a_file(task) -> None:
    task.run_dir.write_text("")


def symlink_loop(task) -> None:
    task.run_dir.symlink_to(task.run_dir)


def dangling_symlink(task) -> None:
    task.run_dir.symlink_to(task.directory / "nowhere" / "run")


@pytest.mark.parametrize(
    "spoil, ranks",
    [
        *((spoil, 1) for spoil in (read_only, read_only_parent, below_a_file, a_file, symlink_loop, dangling_symlink)),
        (read_only, 2),
    ],
)
def test_a_run_dir_that_cannot_be_written_is_refused_before_the_job(task, start, spoil, ranks):
    task = task.at("new/run") if spoil in (read_only_parent, below_a_file) else task
    spoil(task)
    job = start(task.train(), ranks=ranks, hooks=dict.fromkeys(range(ranks), obey_modes))
    codes = job.wait()
    assert set(codes) == {2}, job.output()
    assert f"run.dir={task.run_dir}" in job.output() and "Traceback" not in job.output(), job.output()


def test_a_run_dir_whose_parents_are_missing_is_made(task, start):
    task = task.at("some/new/run")
    job = start(task.train("train.steps=1"))
    assert job.wait() == [0], job.output()
    assert len(metrics(task.run_dir)) == 1


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
def test_input_that_is_a_symlink_loop_is_refused(task, start, key):
    loop = task.directory / "loop"
    loop.symlink_to(loop)
    job = start(task.train(f"{key}={loop}"))
    assert job.wait() == [2], job.output()
    assert f"{key}={loop}" in job.output() and "Traceback" not in job.output()


def turn_the_clock(seconds: float) -> None:
    """Let the clock of the wall jump by this much, to and fro, at every look at it."""
    real, looks = time.time, iter(range(1 << 62))
    time.time = lambda: real() + (seconds if next(looks) % 2 else 0.0)


@pytest.mark.parametrize("seconds", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_neither_ends_a_run_nor_makes_times_negative(task, start, seconds):
    limits = ["checkpoint.save_by=600", "run.hang_timeout=600"]
    job = start(task.train(*limits), hooks={0: partial(turn_the_clock, seconds)})
    assert job.wait() == [0], job.output()
    lines = [line for line in job.output().splitlines() if line.startswith("step ")]
    assert len(lines) == STEPS and not any("-" in line.split("reward")[0] for line in lines)
