"""Servers that a run starts: ready, failing, hanging, restarted, ended."""

import os
import stat
import sys
import time

import pytest

from rest_megatron.errors import EngineError, Preempted
from rest_megatron.rollout.vllm.client import Client
from rest_megatron.rollout.vllm.spawned import SpawnedServer
from tests.unit.rollout.vllm.programs import ANSWERS, FAILS, HANGS, PREAMBLE, REFUSES, runs, started


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
    assert time.monotonic() - begun < 30
    assert all(words in str(caught.value) for words in [*said, str(tmp_path / "vllm.log")])
    assert str(caught.value).count("\n") < 25, "an excerpt, not the whole log"


def test_a_server_that_never_answers_fails_at_its_deadline(spawn, tmp_path):
    server = spawn(HANGS, start_timeout=1.5)
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"rollout.start_timeout=1.5 s[^$]*loading"):
        server.wait_ready()
    assert 1.5 <= time.monotonic() - begun < 30
    server.close()
    assert [runs(pid) for pid in started(tmp_path)] == [False]


def test_a_stop_does_not_wait_for_a_server_that_starts(spawn):
    server, begun = spawn(HANGS, start_timeout=60), time.monotonic()

    def check() -> None:
        if time.monotonic() - begun > 1:
            raise Preempted("SIGTERM")

    with pytest.raises(Preempted):
        server.wait_ready(check)
    assert time.monotonic() - begun < 30


def test_a_restarted_server_answers_and_of_the_old_one_nothing_is_left(spawn, tmp_path):
    server = spawn(ANSWERS)
    server.wait_ready()
    first = server.address.uds.parent
    server.restart()
    old, new = started(tmp_path)
    assert not runs(old) and runs(new) and not first.exists()
    Client(server.address).health(5)


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


def test_a_server_that_cannot_be_started_is_a_clear_error_and_leaves_no_directory(temporary, monkeypatch, tmp_path):
    with pytest.raises(EngineError, match=r"the vLLM server cannot be started: .*No such file.*/gone/vllm.log"):
        SpawnedServer("python", {}, os.environ, tmp_path / "gone" / "vllm.log", 10)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no interpreter"))
    with pytest.raises(EngineError, match="no interpreter"):
        SpawnedServer("python", {}, os.environ, tmp_path / "vllm.log", 10)
    assert list(temporary.iterdir()) == []


def test_a_log_that_is_gone_hides_no_error(spawn, tmp_path):
    server = spawn(HANGS)
    (tmp_path / "vllm.log").unlink()
    assert server.log_tail() == ""


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
