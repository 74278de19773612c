"""Real vLLM servers for the tests here. `make test-vllm` installs vLLM and names its interpreter."""

import shutil
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Kind:
    """A model and how a server holds it."""

    name: str
    tied: bool = False
    dtype: str = "float32"
    tensor_parallel: int = 1

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="session")
def serve(vllm_python, tiny_model, tmp_path_factory):
    """`serve(kind)`: the directory of a tiny model, and a server of it that runs until the session ends.

    The server's own directory has no weights, so whatever it knows of them has been sent to it.
    """
    import torch

    from rest_megatron.rollout.server_command import server_arguments, server_environment
    from rest_megatron.rollout.spawned import SpawnedServer
    from tests.system.runs import TOKENIZER, environment
    from tests.vllm.cases import server_config

    running = {}

    def get(kind: Kind):
        if kind in running:
            return running[kind]
        model = tiny_model("qwen3", kind.tied, getattr(torch, kind.dtype))
        directory = tmp_path_factory.mktemp("served")
        shutil.copy(model / "config.json", directory)
        for file in Path(TOKENIZER).glob("tokenizer*"):
            shutil.copy(file, directory)
        config = server_config(directory, kind)
        sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64, "head_dim": 32}
        server = SpawnedServer(
            vllm_python,
            server_arguments(config, sizes, on_cpu=True),
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
