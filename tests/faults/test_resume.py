"""Where a run that has ended goes on, by the command that started it, and what is refused; see also test_kill.

What it then computes is compared on more layouts, and stopped at every place, in tests/distributed/test_resume.py.
"""

import pytest

from tests.faults.task import STEPS, assert_same, outcome, same_but_for_rounding
from tests.waiting import until

TP2 = "parallel.tensor_model_parallel_size=2"


@pytest.mark.parametrize("step", [1, 3, STEPS], ids=["the-first-step", "an-epoch-s-first-step", "the-last-step"])
def test_a_run_that_is_saved_only_when_it_is_stopped_goes_on_with(task, straight, start, step):
    words = task.train("checkpoint.interval=0")
    job = start(words, variables={"FAULT": f"reward {step} SIGTERM sleep:0.2"})
    assert job.wait() == [75], job.output()
    assert f"saved after step {step - 1} of {STEPS}" in job.output()
    again = start(words)
    assert again.wait() == [0], again.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_a_run_goes_on_after_its_last_step(task, straight, start):
    job = start(task.train(), variables={"FAULT": f"evaluation {STEPS} SIGTERM sleep:0.2"})
    assert job.wait() == [75] and f"saved after step {STEPS} of {STEPS}" in job.output(), job.output()
    again = start(task.train())
    assert again.wait() == [0], again.output()
    assert_same(outcome(task.run_dir), straight(1))


@pytest.mark.parametrize("before, after", [((1, []), (2, [])), ((2, [TP2]), (1, []))], ids=["DP1-DP2", "TP2-TP1"])
def test_a_run_goes_on_on_another_layout(task, straight, start, before, after):
    ranks, layout = before
    job = start(task.train(*layout), ranks=ranks, variables={"FAULT": "reward 3 SIGTERM sleep:0.2"})
    assert set(job.wait()) == {75}, job.output()
    ranks, layout = after
    again = start(task.train(*layout), ranks=ranks)
    assert set(again.wait()) == {0}, again.output()
    assert "saved on another layout" in again.output()
    same_but_for_rounding(outcome(task.run_dir)["metrics"], straight(1)["metrics"])


def test_a_changed_configuration_is_refused_until_it_is_allowed(stopped, start):
    job = start(stopped.train("run.seed=1"))
    assert job.wait() == [2] and "run.seed=1 differs from 0" in job.output(), job.output()
    assert "checkpoint.allow_changes=true" in job.output()
    job = start(stopped.train("run.seed=1", "checkpoint.allow_changes=true"))
    assert job.wait() == [0] and "resuming after step 3" in job.output(), job.output()


def test_a_run_dir_belongs_to_one_job(task, straight, start):
    first = start(task.train(), variables={"FAULT": "reward 2 sleep:4"})
    until(lambda: (task.directory / "fault").exists())
    second = start(task.train(TP2), ranks=2)
    assert set(second.wait()) == {2}
    said = second.output()
    assert f"run.dir={task.run_dir} is in use by another job: process {first.processes[0].pid}" in said, said
    assert first.wait() == [0], first.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_a_job_that_was_killed_holds_no_lock(stopped, start):
    assert (stopped.run_dir / ".lock").exists()
    job = start(stopped.train())
    assert job.wait() == [0], job.output()


def test_a_named_checkpoint_that_is_none_is_refused(task, start):
    job = start(task.train(f"checkpoint.resume={task.directory}", TP2), ranks=2)
    assert set(job.wait()) == {4}, job.output()
    assert f"{task.directory} has no manifest.json" in job.output() and "Traceback" not in job.output()
