"""Which server a run opens, and that it is ended however the run ends."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.config import load
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm import spawned
from rest_megatron.rollout.vllm.server import open_server
from tests.unit.rollout.vllm.operator_server import CONFIG, SETTINGS, operator
from tests.unit.rollout.vllm.programs import ANSWERS, HANGS, PREAMBLE, runs, started
from tests.waiting import happens


class Alone(SimpleNamespace):
    """A run of one rank."""

    watch = Watch()

    def only_main(self, function):
        return function()


def opened(config, tmp_path) -> str:
    """The kind of server that `open_server` gives a run of one rank."""
    with open_server(config, tmp_path, Alone(device=torch.device("cpu"))) as server:
        return type(server).__name__


def test_the_key_in_the_environment_opens_an_operators_server(tmp_path, monkeypatch):
    with operator({"vllm_config": SETTINGS}, token="s3") as url:
        config = load([], [*CONFIG, f"rollout.vllm_url={url}"])
        with pytest.raises(EngineError, match="401"):
            opened(config, tmp_path)
        monkeypatch.setenv("VLLM_API_KEY", "s3")
        assert opened(config, tmp_path) == "AttachedServer"


def test_no_server_is_opened_where_none_is_asked(tmp_path):
    assert opened(load([], ["rollout.engine=sampler"]), tmp_path) == "NoneType"


STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + ANSWERS


@pytest.fixture
def spawning(tmp_path, temporary, monkeypatch):
    """`spawning(body)`: configuration of a run that starts this program; the directory its sockets lie in."""
    sizes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    python = tmp_path / "python"
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(spawned, "GRACE_SECONDS", 1.0)

    def make(body: str, *words: str):
        python.write_text(f"#!{sys.executable} -IS\n{PREAMBLE}{body}")
        python.chmod(0o700)
        return load([], [*CONFIG, f"rollout.vllm_python={python}", f"model.path={tmp_path}", *words]), temporary

    return make


def wait_until_gone(tmp_path: Path, temporary: Path) -> None:
    left = lambda: [*filter(runs, started(tmp_path)), *temporary.iterdir()]  # noqa: E731
    assert happens(lambda: not left()), left()


def test_a_server_that_fails_to_start_is_ended(spawning, tmp_path):
    config, temporary = spawning(HANGS, "rollout.start_timeout=1.5")
    with pytest.raises(EngineError, match="did not answer within"):
        opened(config, tmp_path)
    wait_until_gone(tmp_path, temporary)


def test_an_error_is_told_before_the_server_has_ended(spawning, tmp_path, monkeypatch):
    config, temporary = spawning(STUBBORN)
    monkeypatch.setattr(spawned, "GRACE_SECONDS", 4.0)
    with pytest.raises(KeyError):
        with open_server(config, tmp_path, Alone(device=torch.device("cpu"))):
            failed = time.monotonic()
            raise KeyError
    assert time.monotonic() - failed < 2.5, "the other ranks wait three seconds for rank 0's report"
    assert list(map(runs, started(tmp_path))) == [True]
    wait_until_gone(tmp_path, temporary)


def test_at_the_end_of_a_run_its_server_is_waited_for(spawning, tmp_path):
    config, temporary = spawning(STUBBORN)
    assert opened(config, tmp_path) == "SpawnedServer"
    assert list(map(runs, started(tmp_path))) == [False] and list(temporary.iterdir()) == []
