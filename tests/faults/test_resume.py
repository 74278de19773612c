"""Where a run that has ended goes on, by the command that started it, and what is refused; see also test_kill.

What it then computes is compared on more layouts, and stopped at every place, in tests/distributed/test_resume.py.
"""

import signal

from tests.faults.task import STEPS, assert_same, outcome, same_but_for_rounding
from tests.waiting import until

TP2 = "parallel.tensor_model_parallel_size=2"


def test_a_run_that_is_saved_only_when_it_is_stopped_resumes(task, straight, start):
    step = 3  # the first of an epoch
    words = task.train("checkpoint.interval=0")
    job = start(words, variables={"FAULT": f"reward {step} SIGTERM sleep:0.2"})
    assert job.wait() == [75], job.output()
    assert f"saved after step {step - 1} of {STEPS}" in job.output()
    again = start(words)
    assert again.wait() == [0], again.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_a_run_resumes_on_another_layout(task, straight, start):
    job = start(task.train(TP2), ranks=2, variables={"FAULT": "reward 3 SIGTERM sleep:0.2"})
    assert job.wait() == [75, 75], job.output()
    again = start(task.train())
    assert again.wait() == [0], again.output()
    assert "saved on another layout" in again.output()
    same_but_for_rounding(outcome(task.run_dir)["metrics"], straight(1)["metrics"])


def test_the_command_of_a_finished_run_says_so_once_and_ends_with_0(task, start):
    words = task.train(TP2, "train.steps=1")
    first = start(words, ranks=2)
    assert first.wait() == [0, 0], first.output()
    again = start(words, ranks=2)
    assert again.wait() == [0, 0], again.output()
    assert again.output().count("finished: step 1 of 1, exported to hf; nothing to do") == 1, again.output()
    assert "Traceback" not in again.output() and "rank 1" not in again.output()


def test_a_run_dir_belongs_to_one_job(task, straight, start):
    first = start(task.train(), variables={"FAULT": "reward 2 sleep:1"})
    until(lambda: (task.directory / "fault").exists())
    first.signal(signal.SIGSTOP)
    second = start(task.train(TP2), ranks=2)
    assert set(second.wait()) == {2}
    first.signal(signal.SIGCONT)
    said = second.output()
    assert f"run.dir={task.run_dir} is in use by another job: process {first.processes[0].pid}" in said, said
    assert first.wait() == [0], first.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_a_named_checkpoint_that_is_none_is_refused(task, start):
    job = start(task.train(f"checkpoint.resume={task.directory}", TP2), ranks=2)
    assert set(job.wait()) == {4}, job.output()
    assert f"{task.directory} has no manifest.json" in job.output() and "Traceback" not in job.output()
