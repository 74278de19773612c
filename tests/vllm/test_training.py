"""Whole runs of the program with a real vLLM server that it starts itself."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rest_megatron.rollout.keeper import descendants
from tests.system.runs import environment, make_run, metrics, run, torchrun

pytestmark = pytest.mark.vllm

CUT = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]


def words(directory: Path, vllm_python: str, steps: int) -> list[str]:
    server = ["rollout.engine=vllm", f"rollout.vllm_python={vllm_python}", "rollout.start_timeout=240"]
    return ["train", *make_run(directory), *CUT, *server, f"train.steps={steps}"]


def sockets() -> set[Path]:
    return set(Path("/tmp").glob("rest_megatron-*"))


def test_training_from_tensor_and_pipeline_parallel_ranks_samples_from_the_actors_own_weights(tmp_path, vllm_python):
    before = sockets()
    done = run(torchrun(4, *words(tmp_path, vllm_python, steps=5)), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["mismatch/max"] < 1e-4 and row["mismatch/mean"] < 1e-4 for row in rows)
    assert all(row["actor/grad_norm"] > 0 for row in rows), "the weights must change from step to step"
    assert [row["rollout/weight_version"] for row in rows] == [0, 1, 2, 3, 4]
    assert sockets() == before and (tmp_path / "run" / "vllm.log").stat().st_size > 0


def test_killing_the_trainer_leaves_no_server_behind(tmp_path, vllm_python):
    before = sockets()
    job = subprocess.Popen(
        torchrun(4, *words(tmp_path, vllm_python, steps=1000)),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        rows = tmp_path / "run" / "metrics.jsonl"
        assert wait(lambda: job.poll() is not None or (rows.exists() and rows.stat().st_size), 240)
        keeper = next(pid for pid in descendants(job.pid) if "keeper.py" in command(pid))
        server = [keeper, *descendants(keeper)]
        assert len(server) >= 4, "keeper, server, engine and worker"
        os.kill(parent(keeper), signal.SIGKILL)
        assert wait(lambda: not any(map(runs, server)), 30), [command(pid) for pid in server if runs(pid)]
        assert sockets() == before
    finally:
        job.terminate()
        job.wait(60)


def wait(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def runs(pid: int) -> bool:
    return command(pid) != ""


def command(pid: int) -> str:
    """The words of a process; none of one that has ended, a zombie included."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
