"""Real vLLM servers for the tests here. `make test-vllm` installs vLLM and names its interpreter."""

import shutil
from pathlib import Path

import pytest

OPTION = "--vllm-python"


def pytest_addoption(parser):
    parser.addoption(OPTION, help="interpreter of an environment that holds vLLM for this machine")


@pytest.fixture(scope="session")
def vllm_python(request) -> str:
    """The interpreter; tests that ask for it are skipped without one."""
    python = request.config.getoption(OPTION)
    if not python:
        pytest.skip(f"needs {OPTION}=PATH; `make test-vllm` installs vLLM and gives it")
    return python


@pytest.fixture(scope="session")
def serve(vllm_python, tiny_model, tmp_path_factory):
    """`serve(kind)`: the directory of a tiny model, and a server of it that runs until the session ends.

    The server's own directory has no weights, so whatever it knows of them has been sent to it.
    """
    import torch

    from rest_megatron.config.check import read_model_config
    from rest_megatron.rollout.vllm.command import server_arguments, server_environment
    from rest_megatron.rollout.vllm.spawned import SpawnedServer
    from tests.system.runs import TOKENIZER, environment
    from tests.vllm.cases import server_config

    running = {}
    shared = set(Path("/dev/shm").glob("vllm_dist_*"))

    def get(kind):
        if kind in running:
            return running[kind]
        model = tiny_model("qwen3", kind.tied, getattr(torch, kind.dtype))
        directory = tmp_path_factory.mktemp("served")
        shutil.copy(model / "config.json", directory)
        for file in Path(TOKENIZER).glob("tokenizer*"):
            shutil.copy(file, directory)
        config = server_config(directory, kind)
        server = SpawnedServer(
            vllm_python,
            server_arguments(config, read_model_config(config), on_cpu=True),
            server_environment(config, environment(), on_cpu=True),
            directory / "vllm.log",
            start_timeout=240,
        )
        running[kind] = model, server
        server.wait_ready()
        return running[kind]

    yield get
    for _, server in running.values():
        server.close()
    # On CPU two workers leave what they have talked through.
    for file in set(Path("/dev/shm").glob("vllm_dist_*")) - shared:
        file.unlink(missing_ok=True)
