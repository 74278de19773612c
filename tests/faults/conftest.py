"""Runs that are small enough to be broken many times."""

import shutil
import signal
from pathlib import Path

import pytest

from tests.distributed.talkative import make_talkative_run
from tests.faults.jobs import Job
from tests.faults.task import REWARDS, Task, make_task, outcome, small


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> list[str]:
    """The overrides of a run on a tiny model, made once."""
    return make_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def task(words, tmp_path) -> Task:
    """What to run, in a directory of this test's own."""
    return Task(words, tmp_path)


@pytest.fixture(scope="session")
def talking_words(tmp_path_factory) -> list[str]:
    """The overrides of a run whose answers are dialogues with tools."""
    directory = tmp_path_factory.mktemp("talking")
    words = make_talkative_run(directory)
    tools = [f"rollout.tools={REWARDS}:respond", "rollout.group_size=2", "rollout.max_new_tokens=32"]
    return [*small(words, directory), *tools, "train.max_tokens_per_micro_batch=96", "log.quiet=false"]


@pytest.fixture(scope="session")
def straight(words, talking_words, tmp_path_factory):
    """`straight(ranks, *overrides, talking=False)`: the outcome of a run that nothing disturbs, made once."""
    made = {}

    def get(ranks: int, *overrides: str, talking: bool = False) -> dict:
        key = (ranks, talking, *overrides)
        if key not in made:
            task = Task(talking_words if talking else words, tmp_path_factory.mktemp("straight"))
            job = Job(task.train(*overrides), task.directory, ranks)
            assert set(job.wait()) == {0}, job.output()
            made[key] = outcome(task.run_dir)
        return made[key]

    return get


@pytest.fixture(scope="session")
def killed(words, tmp_path_factory) -> Path:
    """The directory of a run that was killed in its fourth step: checkpoints of the second and the third are there."""
    task = Task(words, tmp_path_factory.mktemp("killed"))
    job = Job(task.train(), task.directory, variables={"FAULT": "reward 4 SIGKILL"})
    assert job.wait() == [-signal.SIGKILL], job.output()
    return task.run_dir


@pytest.fixture
def stopped(task, killed) -> Task:
    """The task with a copy of that run."""
    shutil.copytree(killed, task.run_dir)
    return task


@pytest.fixture
def start(tmp_path):
    """`start(words, ranks, hooks, variables)`: a `Job`; what still runs when the test ends is killed."""
    jobs = []

    def make(*args, **kwargs) -> Job:
        jobs.append(Job(*args, directory=tmp_path, **kwargs))
        return jobs[-1]

    yield make
    for job in jobs:
        job.kill()
