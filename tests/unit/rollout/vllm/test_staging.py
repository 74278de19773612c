"""The directory that weights pass through: where it is, who may read it, and that none is left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from rest_megatron.config.schema import Config, RolloutConfig
from rest_megatron.errors import ConfigError, EngineError
from rest_megatron.rollout.vllm import staging
from rest_megatron.rollout.vllm.client import Address
from rest_megatron.rollout.vllm.staging import choose_base, is_local, remove_abandoned, require_room, staging_directory

SOCKET = Address("http://localhost", Path("/run/x.sock"))
AWAY = Address("http://gpu17:8000")


def config(sync_dir=None) -> Config:
    return Config(rollout=RolloutConfig(sync_dir=sync_dir))


@pytest.mark.parametrize(
    "address, local",
    [
        (SOCKET, True),
        (AWAY, False),
        (Address("http://localhost:8000"), True),
        (Address("http://127.0.0.1:8000/"), True),
        (Address("http://[::1]:8000"), True),
        (Address(f"http://{socket.gethostname()}:8000"), True),
        (Address("http://127.0.0.1.example.com"), False),
    ],
)
def test_a_server_on_this_machine_is_known_by_its_address(address, local):
    assert is_local(address) is local


def test_shared_memory_serves_one_node_and_a_named_directory_any(tmp_path):
    assert choose_base(config(), SOCKET, {"a"}) == Path("/dev/shm")
    assert choose_base(config(str(tmp_path)), AWAY, {"a", "b"}) == tmp_path


def test_the_servers_path_of_a_named_directory_does_not_depend_on_where_it_was_started(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    monkeypatch.chdir(tmp_path)
    assert choose_base(config("shared"), AWAY, {"a"}) == tmp_path / "shared"


@pytest.mark.parametrize(
    "sync_dir, address, hosts, text",
    [
        (None, SOCKET, {"a", "b"}, "the trainer runs on 2 nodes"),
        (None, AWAY, {"a"}, "the server is at http://gpu17:8000"),
        ("/nowhere/at/all", SOCKET, {"a"}, "rollout.sync_dir=/nowhere/at/all is not a directory on"),
    ],
)
def test_where_only_the_operator_knows_a_shared_directory_the_key_is_named(sync_dir, address, hosts, text):
    with pytest.raises(ConfigError) as raised:
        choose_base(config(sync_dir), address, hosts)
    assert text in str(raised.value) and "rollout.sync_dir=" in str(raised.value)


def test_too_little_room_is_an_error_with_the_numbers(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 5_000_000))
    require_room(tmp_path, 3_000_000)
    with pytest.raises(ConfigError, match=r"has 5,000,000 bytes free.*needs 6,048,576.*\n.*rollout.sync_dir"):
        require_room(tmp_path, 5_000_000)


def test_the_directory_is_fresh_private_and_removed_in_any_case(tmp_path):
    with staging_directory(tmp_path, 3) as first, staging_directory(tmp_path, 3) as second:
        assert first != second and first.parent == second.parent == tmp_path
        assert first.stat().st_mode & 0o777 == 0o700
        (first / "x").write_bytes(b"1")
    with pytest.raises(KeyError):
        with staging_directory(tmp_path, 4):
            raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_cannot_be_written_is_an_error_that_names_the_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"no directory for the weights in .*/file \(rollout.sync_dir\)"):
        with staging_directory(tmp_path / "file", 0):
            pass


HOLDER = """
import sys, time
from pathlib import Path
from rest_megatron.rollout.vllm.staging import staging_directory
with staging_directory(Path(sys.argv[1]), 5) as directory:
    (directory / "model.safetensors").write_bytes(b"weights")
    print(directory, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_trainer_left_is_deleted_and_what_a_living_one_uses_is_not(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(staging, "MIN_AGE", 0.0)
    other = tmp_path / "rest_megatron-v5-mine"
    other.mkdir()
    (tmp_path / "unrelated").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        left = Path(holder.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert (left / "model.safetensors").exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    monkeypatch.setattr(staging, "MIN_AGE", 3600.0)
    remove_abandoned(tmp_path)
    assert left.exists(), "a young directory may be about to be locked"
    past = time.time() - 7200
    os.utime(left, (past, past))
    remove_abandoned(tmp_path)
    assert not left.exists()
    assert str(left) in caplog.text
    assert other.exists(), "not made by a trainer: it has no lock"
    assert (tmp_path / "unrelated").exists()
