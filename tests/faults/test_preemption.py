"""A run that is asked to stop is saved wherever it is, ends with 75, and goes on to the end it would have had.

Signals come from within the reward and the tools, at exact moments (`rewards`), and to one rank alone.
"""

import itertools
import signal
import subprocess
from dataclasses import replace

import pytest

from tests.faults.task import assert_same, outcome
from tests.system.runs import environment, torchrun
from tests.waiting import until

PLACES = ("rollout", "reward", "update", "checkpoint", "evaluation")
TP2 = "parallel.tensor_model_parallel_size=2"
# One of each; the other places take minutes. That every signal is heard alike is shown in tests/unit/distributed.
CHOSEN = [
    ("rollout", 2, "SIGTERM", 1),
    ("reward", 3, "SIGUSR1", 2),
    ("update", 1, "SIGTERM", 1),
    ("checkpoint", 2, "SIGINT", 2),
    ("evaluation", 0, "SIGTERM", 1),
    ("evaluation", 2, "SIGUSR1", 1),
]
ALL = [
    pytest.param(place, step, "SIGTERM", ranks, marks=pytest.mark.slow)
    for place, step, ranks in itertools.product(PLACES, (1, 2, 4), (1, 2))
    if (place, step, "SIGTERM", ranks) not in CHOSEN
]


@pytest.mark.parametrize("place, step, name, ranks", [*CHOSEN, *ALL])
def test_a_stopped_run_goes_on_to_the_same_end(task, talking_words, straight, start, place, step, name, ranks):
    talking = place == "rollout"
    task = replace(task, words=talking_words) if talking else task
    overrides = [TP2] if ranks > 1 else []
    overrides += ["train.eval_interval=1"] if place == "evaluation" else []
    # A step's updates last a second; one step more shows that the run goes on.
    overrides += ["train.epochs=20", f"train.steps={step + 1}"] if place == "update" else []
    job = start(task.train(*overrides), ranks=ranks, variables={"FAULT": f"{place} {step} {name} sleep:0.2"})
    assert set(job.wait()) == {75}, job.output()
    assert job.output().count(f"preempted: {name}: saved after step") == 1, job.output()
    assert "Traceback" not in job.output()
    again = start(task.train(*overrides), ranks=ranks)
    assert set(again.wait()) == {0}, again.output()
    assert "resuming after step" in again.output()
    assert_same(outcome(task.run_dir), straight(ranks, *overrides, talking=talking))


def test_the_request_may_come_to_any_rank(task, straight, start):
    job = start(task.train(TP2), ranks=2, variables={"FAULT": "reward 2 sleep:1.5"})
    until(lambda: (task.directory / "fault").exists())
    job.signal(signal.SIGTERM, rank=1)
    assert job.wait() == [75, 75], job.output()
    again = start(task.train(TP2), ranks=2)
    assert again.wait() == [0, 0], again.output()
    assert_same(outcome(task.run_dir), straight(2, TP2))


def test_a_signal_while_a_run_starts_saves_nothing_and_ends_it(task, straight, start):
    job = start(task.train())
    until(lambda: (task.run_dir / ".lock").exists())
    job.signal(signal.SIGTERM)
    assert job.wait() == [75], job.output()
    again = start(task.train())
    assert again.wait() == [0], again.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_ctrl_c_twice_ends_a_run_at_once(task, straight, start):
    job = start(task.train(), ranks=1, variables={"FAULT": "reward 2 SIGINT sleep:2.2 SIGINT sleep:60"})
    assert job.wait(50) == [128 + signal.SIGINT], job.output()
    assert "Traceback" not in job.output()
    again = start(task.train())
    assert again.wait() == [0], again.output()
    assert_same(outcome(task.run_dir), straight(1))


def test_a_signal_that_comes_twice_at_once_is_one_request(task, start):
    """A launcher passes on what the whole process group got already."""
    job = start(task.train(), variables={"FAULT": "reward 2 SIGTERM sleep:0.2 SIGTERM sleep:0.2"})
    assert job.wait() == [75], job.output()


def test_the_time_limit_of_a_run_stops_it_like_a_signal(task, straight, start):
    limit = "checkpoint.save_by=0.5"
    job = start(task.train(limit, TP2), ranks=2, variables={"FAULT": "reward 2 sleep:1"})
    assert job.wait() == [75, 75], job.output()
    assert "checkpoint.save_by=0.5 s are over" in job.output()
    again = start(task.train(TP2), ranks=2)
    assert again.wait() == [0, 0], again.output()
    assert_same(outcome(task.run_dir), straight(2, TP2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_torchrun_passes_the_request_on_and_waits_for_the_save(task, number):
    words = [*torchrun(2, *task.train(TP2))]
    words[1:1] = ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout=60"]
    with open(task.directory / "output.txt", "w") as output:
        launcher = subprocess.Popen(
            words,
            cwd=task.directory,
            env=environment(FAULT="reward 2 sleep:3"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: (task.directory / "fault").exists())
        launcher.send_signal(number)
        assert launcher.wait(60) == 1, "torchrun's own: it says nothing of its ranks"
    finally:
        launcher.kill()
    assert f"{number.name}: saved after step 1 of 4" in (task.directory / "output.txt").read_text()
