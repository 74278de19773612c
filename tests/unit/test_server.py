"""Servers that a run starts or attaches to: ready, failing, hanging, restarted, ended."""

import json
import os
import stat
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.config import load
from rest_megatron.errors import EngineError
from rest_megatron.rollout.attached import AttachedServer, find_differences
from rest_megatron.rollout.client import Address, Client
from rest_megatron.rollout.server import open_server
from rest_megatron.rollout.spawned import SpawnedServer

# Programs in place of `python -m vllm...`: what vLLM does when its arguments are wrong, when its engine fails to start,
# when it hangs, and when all is well. Each start is noted, so that restarts can be counted.
PREAMBLE = """
import os, sys, time
with open(os.environ["NOTES"], "a") as file:
    print(os.getpid(), file=file)
"""
REFUSES = "print('api_server.py: error: unrecognized arguments: --max-modl-len', file=sys.stderr); sys.exit(2)"
FAILS = """
print("(EngineCore pid=1) ERROR ValueError: No available memory for the cache blocks", flush=True)
for i in range(40): print("  File", i)
print("RuntimeError: Engine core initialization failed. See root cause above.")
sys.exit(1)
"""
HANGS = "print('loading', flush=True); time.sleep(600)"
ANSWERS = """
import socketserver
from http.server import BaseHTTPRequestHandler
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
    def address_string(self): return ""
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
Server(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
"""


@pytest.fixture
def spawn(tmp_path):
    servers = []

    def make(body: str, start_timeout: float = 30.0, **arguments) -> SpawnedServer:
        python = tmp_path / "python"
        python.write_text(f"#!{sys.executable} -IS\n{PREAMBLE}{body}")
        python.chmod(python.stat().st_mode | stat.S_IXUSR)
        environment = os.environ | {"NOTES": str(tmp_path / "notes")}
        servers.append(SpawnedServer(str(python), arguments, environment, tmp_path / "vllm.log", start_timeout))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def started(tmp_path: Path) -> list[int]:
    """Process ids of all servers so far, in order."""
    notes = tmp_path / "notes"
    return [int(line) for line in notes.read_text().split()] if notes.exists() else []


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_started_server_answers_on_a_socket_of_this_user_alone_until_it_is_closed(spawn, tmp_path):
    server = spawn(ANSWERS)
    server.wait_ready()
    directory = server.address.uds.parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    Client(server.address).health(5)
    server.close()
    server.close()
    assert [runs(pid) for pid in started(tmp_path)] == [False] and not directory.exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (REFUSES, ["exit code 2", "unrecognized arguments: --max-modl-len"]),
        (FAILS, ["exit code 1", "No available memory for the cache blocks", "Engine core initialization failed"]),
        ("os.kill(os.getpid(), 9)", ["exit code 137"]),
    ],
    ids=["wrong arguments", "the engine fails", "out of memory"],
)
def test_a_server_that_ends_early_is_noticed_at_once_with_its_own_words(spawn, tmp_path, body, said):
    server, begun = spawn(body, start_timeout=60), time.monotonic()
    with pytest.raises(EngineError) as caught:
        server.wait_ready()
    assert time.monotonic() - begun < 10
    assert all(words in str(caught.value) for words in [*said, str(tmp_path / "vllm.log")])
    assert str(caught.value).count("\n") < 25, "an excerpt, not the whole log"


def test_a_server_that_never_answers_fails_at_its_deadline(spawn, tmp_path):
    server = spawn(HANGS, start_timeout=1.5)
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"rollout.start_timeout=1.5 s[^$]*loading"):
        server.wait_ready()
    assert 1.5 <= time.monotonic() - begun < 6
    server.close()
    assert [runs(pid) for pid in started(tmp_path)] == [False]


def test_a_restarted_server_answers_at_the_same_address_and_the_old_one_is_gone(spawn, tmp_path):
    server = spawn(ANSWERS)
    server.wait_ready()
    address = server.address
    server.restart()
    old, new = started(tmp_path)
    assert server.address == address and not runs(old) and runs(new)
    Client(address).health(5)


def test_the_end_of_the_log_is_that_of_the_last_start(spawn, tmp_path):
    (tmp_path / "vllm.log").write_text("ValueError: of an earlier run\n")
    server = spawn("print('ValueError: now', flush=True); sys.exit(1)")
    with pytest.raises(EngineError):
        server.wait_ready()
    assert server.log_tail() == "ValueError: now"


def test_an_interpreter_that_is_gone_is_named(spawn, tmp_path):
    spawn(ANSWERS).close()
    server = SpawnedServer(str(tmp_path / "gone"), {}, os.environ, tmp_path / "vllm.log", 10)
    with pytest.raises(EngineError, match="gone cannot be started"):
        server.wait_ready()
    server.close()


def test_a_temporary_directory_too_long_for_a_socket_is_refused(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(EngineError, match="Set TMPDIR to a shorter one"):
        SpawnedServer("python", {}, os.environ, tmp_path / "vllm.log", 10)
    assert list(long.iterdir()) == []


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_started_server_can_sleep_when_the_configuration_says_so(spawn, sleeps):
    assert spawn(HANGS, enable_sleep_mode=sleeps).can_sleep == sleeps


# An operator's server.

CONFIG = ["data.max_prompt_tokens=100", "rollout.max_new_tokens=28", "rollout.engine=vllm"]
MODEL = {
    "logprobs_mode": "processed_logprobs",
    "dtype": "torch.bfloat16",
    "max_model_len": 128,
    "served_model_name": "policy",
    "generation_config": "vllm",
    "enable_sleep_mode": True,
}
SETTINGS = {"model_config": MODEL, "weight_transfer_config": {"backend": "rest_files"}}


@contextmanager
def operator(settings: dict, token: str = ""):
    """A server on TCP that shows these settings; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = not token or self.headers["authorization"] == f"Bearer {token}"
            reply = b"" if self.path == "/health" else json.dumps(settings).encode()
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def attach(url: str) -> AttachedServer:
    server = AttachedServer(Address(url), load([], [*CONFIG, f"rollout.vllm_url={url}"]))
    server.wait_ready()
    return server


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_server_as_print_server_starts_it_is_attached(sleeps):
    settings = {
        "model_config": MODEL | {"enable_sleep_mode": sleeps},
        "weight_transfer_config": {"backend": "rest_files"},
    }
    with operator({"vllm_config": settings}) as url:
        server = attach(url)
        assert (server.can_sleep, server.restartable, server.log_tail()) == (sleeps, False, "")
        with pytest.raises(EngineError, match="was not started by this run"):
            server.restart()
        server.close()
        Client(server.address).health(5)


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        (
            "model_config",
            {"logprobs_mode": "raw_logprobs"},
            "logprobs_mode: 'raw_logprobs', must be 'processed_log",
        ),
        ("model_config", {"dtype": "torch.float16"}, "dtype: 'float16', must be 'bfloat16'"),
        ("model_config", {"generation_config": "auto"}, "generation_config: 'auto', must be 'vllm'"),
        ("model_config", {"served_model_name": "/models/a"}, "served_model_name: '/models/a', must be 'policy'"),
        ("model_config", {"max_model_len": 127}, "max_model_len: 127, must be at least 128"),
        ("model_config", {"max_model_len": None}, "max_model_len: None, must be at least 128"),
        ("weight_transfer_config", {"backend": "nccl"}, "weight_transfer_config.backend: 'nccl', must be 'rest_files'"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_with_both_values(section, change, said):
    settings = SETTINGS | {section: SETTINGS[section] | change}
    with operator({"vllm_config": settings}) as url, pytest.raises(EngineError) as caught:
        attach(url)
    assert said in str(caught.value) and "print-server" in str(caught.value)
    assert str(caught.value).count("must be") == 1


def test_a_server_without_weight_transfer_is_refused():
    config = load([], CONFIG)
    assert find_differences(MODEL, {}, config) == ["weight_transfer_config.backend: None, must be 'rest_files'"]
    assert find_differences(MODEL | {"served_model_name": ["a", "policy"]}, {"backend": "rest_files"}, config) == []


@pytest.mark.parametrize("reply", [{}, {"vllm_config": "text"}], ids=["no settings", "settings as text"])
def test_another_kind_of_server_is_refused(reply):
    with operator(reply) as url, pytest.raises(EngineError, match="vllm_config"):
        attach(url)


def test_nobody_at_the_address_is_told_with_the_address():
    with operator({}) as url:
        pass
    with pytest.raises(EngineError, match=url):
        attach(url)


# Which server a run opens.


def opened(config, tmp_path) -> str:
    """The kind of server that `open_server` gives a run of one rank."""

    class Alone(SimpleNamespace):
        def on_main(self, function):
            return function()

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


def test_a_server_that_fails_to_start_is_closed(tmp_path, monkeypatch):
    sizes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable} -IS\n{PREAMBLE}{HANGS}")
    python.chmod(0o700)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    words = [f"rollout.vllm_python={python}", f"model.path={tmp_path}", "rollout.start_timeout=1.5"]
    with pytest.raises(EngineError, match="did not answer within"):
        opened(load([], [*CONFIG, *words]), tmp_path)
    assert [runs(pid) for pid in started(tmp_path)] == [False]
