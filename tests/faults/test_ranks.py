"""One rank of a job fails, dies, hangs or is slow: the others end soon and say why, or wait no longer than needed."""

import os
import re
import signal
import threading
import time
from functools import partial

import pytest

from tests.faults.task import assert_same, outcome, same_but_for_rounding
from tests.waiting import until

LAYOUTS = {
    "TP": "parallel.tensor_model_parallel_size=2",
    "PP": "parallel.pipeline_model_parallel_size=2",
    "DP": "train.mini_batch_size=2",
}
HANG = "run.hang_timeout=3"


def fail_in_update(number: int, act: str) -> None:
    """Let this rank fail in its update of this number, counted from 1. act: raise, sleep or a signal's name."""
    from rest_megatron.actor.actor import Actor

    real, updates = Actor.update, iter(range(1, 1 << 62))

    def update(self, *args, **kwargs):
        if next(updates) == number:
            if act == "raise":
                raise RuntimeError("planted")
            if act == "sleep":
                time.sleep(600)
            os.kill(os.getpid(), signal.Signals[act])
        return real(self, *args, **kwargs)

    Actor.update = update


@pytest.mark.parametrize(
    "layout, act",
    [("TP", "raise"), pytest.param("TP", "SIGKILL", marks=pytest.mark.slow), ("PP", "SIGKILL"), ("DP", "SIGKILL")],
)
def test_when_one_rank_is_gone_the_other_ends_too(task, straight, start, layout, act):
    words = task.train(LAYOUTS[layout])
    job = start(words, ranks=2, hooks={1: partial(fail_in_update, 3, act)})
    other, gone = job.wait()
    assert gone == (1 if act == "raise" else -signal.SIGKILL) and other not in (0, 75, None), job.output()
    again = start(words, ranks=2)
    assert again.wait() == [0, 0], again.output()
    assert_same(outcome(task.run_dir), straight(2, LAYOUTS[layout]))


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_a_rank_that_hangs_ends_the_job_with_76_and_its_stacks(task, straight, start, bad_rank):
    words = task.train(LAYOUTS["TP"])
    job = start([*words, HANG], ranks=2, hooks={bad_rank: partial(fail_in_update, 3, "sleep")})
    codes = job.wait()
    assert codes[bad_rank] == 76 and codes[1 - bad_rank] not in (0, 75), job.output()
    assert re.search(rf"rank {bad_rank} made no progress for \d+ s in phase 'update'", job.output()), job.output()
    stacks = (task.run_dir / "hang" / f"rank-{bad_rank}.txt").read_text()
    assert "fail_in_update" not in stacks.splitlines()[0] and "test_ranks.py" in stacks
    again = start(words, ranks=2)
    assert again.wait() == [0, 0], again.output()
    assert_same(outcome(task.run_dir), straight(2, LAYOUTS["TP"]))


def test_a_reward_that_hangs_ends_the_job_with_76(task, start):
    job = start(task.train(LAYOUTS["TP"], HANG), ranks=2, variables={"FAULT": "reward 2 sleep:600"})
    codes = job.wait()
    assert codes[0] == 76 and codes[1] not in (0, 75), job.output()
    assert "in phase 'rollout/reward'" in job.output() or "in phase 'reward'" in job.output(), job.output()
    assert "rewards.py" in (task.run_dir / "hang" / "rank-0.txt").read_text()


def test_a_stopped_process_is_noticed_by_the_others(task, start):
    job = start(task.train(LAYOUTS["TP"], HANG, "train.steps=200"), ranks=2)
    until(lambda: "step   2/200" in job.output())
    job.signal(signal.SIGSTOP, rank=1)
    until(lambda: job.processes[0].exitcode is not None)
    assert job.processes[0].exitcode == 76, job.output()


def test_a_rank_that_is_three_times_slower_raises_no_alarm(task, straight, start):
    # Longer than a machine that is busy besides keeps a process waiting.
    job = start(task.train(LAYOUTS["TP"], "run.hang_timeout=6"), ranks=2)
    ended = threading.Event()

    def slow_down() -> None:
        while not ended.wait(0.05):
            job.signal(signal.SIGSTOP, rank=1)
            time.sleep(0.1)
            job.signal(signal.SIGCONT, rank=1)

    brake = threading.Thread(target=slow_down)
    brake.start()
    try:
        until(lambda: job.processes[1].exitcode is not None, 120)
    finally:
        ended.set()
        brake.join()
    assert job.wait() == [0, 0], job.output()
    assert "hang:" not in job.output() and not (task.run_dir / "hang").exists()
    assert_same(outcome(task.run_dir), straight(2, LAYOUTS["TP"]))


def test_a_rank_without_answers_changes_nothing(task, straight, start):
    """Mini-batches of one answer: one of two data-parallel ranks has none, in every update."""
    overrides = ["train.mini_batch_size=1", "rollout.prompts_per_step=1", "train.steps=2"]
    job = start(task.train(*overrides), ranks=2)
    assert job.wait() == [0, 0], job.output()
    found = outcome(task.run_dir)["metrics"]
    same_but_for_rounding(found, straight(1, *overrides)["metrics"])
    assert all(row["actor/grad_norm"] > 0 for row in found)
