"""examples/slurm/train.sbatch under a Slurm of one machine: which ends are requeued, and that the job then goes on."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rest_megatron.distributed.launch import free_port
from tests.faults import fake_srun
from tests.faults.task import assert_same, outcome
from tests.system.runs import ROOT, environment
from tests.waiting import until

SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"


@pytest.fixture
def cluster(tmp_path) -> Path:
    """A directory to submit from: an environment, srun and scontrol, and `requeued`, where scontrol notes its calls."""
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    path = f"{tools}:{Path(sys.executable).parent}"
    (tools / "activate").write_text(f'export PATH="{path}:$PATH"\n')
    programs = {
        "srun": f'exec {sys.executable} {fake_srun.__file__} "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
    }
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (tmp_path / "run.yaml").write_text("optim: {lr: 1.0e-3}\n")
    return tmp_path


@pytest.fixture
def submit(cluster):
    """`submit(*words, **variables)`: the batch script as slurmd runs it; what still runs after the test is killed."""
    jobs = []

    def run(*words: str, **variables: str) -> subprocess.Popen:
        job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1", "MASTER_PORT": str(free_port())}
        with open(cluster / "job.log", "a") as log:
            jobs.append(
                subprocess.Popen(
                    ["bash", SCRIPT, "run.yaml", *words],
                    cwd=cluster,
                    env=environment(**job | variables),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return jobs[-1]

    yield run
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def requeued(cluster: Path) -> list[str]:
    """What scontrol was asked."""
    path = cluster / "requeued"
    return path.read_text().splitlines() if path.exists() else []


def ends_with(cluster: Path, code: str) -> None:
    """Let the program end like this in each task, in place of running."""
    python = cluster / ".venv" / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{code}\n")
    python.chmod(0o755)


@pytest.mark.parametrize(
    "program, restarts, code, calls",
    [
        ("exit 0", None, 0, 0),
        ("exit 75", None, 75, 1),
        ("exit 75", "99", 75, 1),
        ("exit 75", "100", 75, 0),
        ("exit 76", "9", 76, 1),
        ("exit 76", "10", 76, 0),
        ("exit 77", None, 77, 0),
        ("exit 2", None, 2, 0),
        ("kill -9 $$", None, 137, 0),
        # One rank is later than the others.
        ("sleep $SLURM_PROCID; exit 75", None, 75, 1),
        ("test $SLURM_PROCID = 0 && exit 1; exit 76", None, 76, 1),
        ("test $SLURM_PROCID = 0 && exit 75; kill -9 $$", None, 137, 0),
    ],
)
def test_only_what_was_saved_or_hung_is_requeued_and_not_for_ever(cluster, submit, program, restarts, code, calls):
    ends_with(cluster, program)
    count = {} if restarts is None else {"SLURM_RESTART_COUNT": restarts}
    assert submit(**count).wait(60) == code
    assert requeued(cluster) == ["requeue 7"] * calls


def test_a_job_that_is_cancelled_is_saved_but_not_requeued(cluster, submit):
    ends_with(cluster, "trap 'exit 75' TERM; touch ready-$SLURM_PROCID; while :; do sleep 0.1; done")
    job = submit()
    until(lambda: (cluster / "ready-0").exists() and (cluster / "ready-1").exists() and (cluster / "srun.pid").exists())
    job.send_signal(signal.SIGTERM)
    os.kill(int((cluster / "srun.pid").read_text()), signal.SIGTERM)
    assert job.wait(60) == 75
    assert requeued(cluster) == []


def test_the_environment_is_not_printed(cluster, submit):
    ends_with(cluster, "exit 75")
    submit(WANDB_API_KEY="hunter2", MY_PASSWORD="hunter2").wait(60)
    assert "hunter2" not in (cluster / "job.log").read_text()


def test_a_job_at_its_time_limit_is_saved_requeued_and_goes_on_to_the_same_end(cluster, submit, task, straight):
    """One task, for its start is most of it; that a signal reaches every rank is shown in test_preemption."""
    # It tells when it is in the middle of the second step's rewards.
    job = submit(*task.train()[1:], SLURM_NTASKS="1", FAULT="reward 2 sleep:1")
    until(lambda: (cluster / "fault").exists(), 120)
    os.kill(int((cluster / "srun.pid").read_text()), signal.SIGUSR1)
    log = cluster / "job.log"
    assert job.wait(120) == 75, log.read_text()
    assert requeued(cluster) == ["requeue 7"] and "saved after step 1 of 4" in log.read_text()
    again = submit(*task.train()[1:], SLURM_NTASKS="1", SLURM_RESTART_COUNT="1")
    assert again.wait(120) == 0, log.read_text()
    assert requeued(cluster) == ["requeue 7"] and "resuming after step 1 of 4" in log.read_text()
    assert_same(outcome(task.run_dir), straight(1))
