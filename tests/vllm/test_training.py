"""Whole runs of the program with a real vLLM server that it starts itself."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from rest_megatron.distributed.launch import free_port
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import Address, Call, Client
from rest_megatron.rollout.vllm.keeper import descendants
from tests.system.runs import environment, make_run, metrics, program, run, torchrun
from tests.waiting import happens

pytestmark = pytest.mark.vllm

CUT = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]
# All answers of a random model score alike; the entropy bonus alone moves its weights, here by far too much.
MOVE = ["algorithm.entropy_coef=1.0", "optim.lr=0.02"]


# Heads of fewer than 32 numbers are too small for vLLM on CPU.
SIZES = {"head_dim": 32}


def started_server(vllm_python: str) -> list[str]:
    return ["rollout.engine=vllm", f"rollout.vllm_python={vllm_python}", "rollout.start_timeout=240"]


def sockets() -> set[Path]:
    return set(Path("/tmp").glob("rest_megatron-*"))


def test_training_from_tensor_and_pipeline_parallel_ranks_samples_from_the_actors_own_weights(tmp_path, vllm_python):
    before = sockets()
    settings = [*make_run(tmp_path, **SIZES), *started_server(vllm_python), *CUT, *MOVE, "train.steps=5"]
    done = run(torchrun(4, "train", *settings), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["mismatch/max"] < 1e-4 and row["mismatch/mean"] < 1e-4 for row in rows)
    assert all(row["actor/grad_norm"] > 0 for row in rows), "the weights must change from step to step"
    assert [row["rollout/weight_version"] for row in rows] == [0, 1, 2, 3, 4]
    assert sockets() == before and (tmp_path / "run" / "vllm.log").stat().st_size > 0


def test_killing_the_trainer_leaves_no_server_behind(tmp_path, vllm_python):
    before = sockets()
    settings = [*make_run(tmp_path, **SIZES), *started_server(vllm_python), "train.steps=1000"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    trainer = subprocess.Popen(program("train", *settings), cwd=tmp_path, env=environment(), **quiet)
    try:
        rows = tmp_path / "run" / "metrics.jsonl"
        assert happens(lambda: trainer.poll() is not None or (rows.exists() and rows.stat().st_size), 240)
        server = descendants(trainer.pid)
        assert len(server) >= 4, "keeper, server, engine and worker"
    finally:
        trainer.kill()
        trainer.wait()
    assert happens(lambda: not any(map(runs, server)), 30), [command(pid) for pid in server if runs(pid)]
    assert sockets() == before


def test_a_run_attaches_to_the_server_that_print_server_tells_to_start_and_leaves_it_running(tmp_path, vllm_python):
    url, key = f"http://127.0.0.1:{free_port()}", {"VLLM_API_KEY": "s3"}
    settings = [*make_run(tmp_path, **SIZES), "rollout.engine=vllm", f"rollout.vllm_url={url}"]
    line = run(program("print-server", *settings), tmp_path).stdout
    tools = os.pathsep.join([str(Path(vllm_python).parent), os.environ["PATH"]])
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(
            line, shell=True, env=environment(PATH=tools, **key), stdout=log, stderr=log, start_new_session=True
        )
    try:
        client = Client(Address(url, api_key="s3"))
        assert happens(lambda: server.poll() is not None or answers(client), 240) and server.poll() is None
        done = run(program("train", *settings, *MOVE), tmp_path, **key)
        assert done.returncode == 0, done.stdout + done.stderr
        assert all(row["mismatch/max"] < 1e-4 for row in metrics(tmp_path / "run"))
        assert client.weight_version(5).startswith("1-")
        assert client.send([Call("GET", "/is_paused")], 5) == [{"is_paused": False}]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def answers(client: Client) -> bool:
    try:
        client.health(5)
    except EngineError:
        return False
    return True


def runs(pid: int) -> bool:
    return command(pid) != ""


def command(pid: int) -> str:
    """The words of a process; none of one that has ended, a zombie included."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
