"""One job at a time in run.dir."""

import multiprocessing
import os
import time

import pytest

from rest_megatron.errors import ConfigError
from rest_megatron.utils.lock import LOCK, locked


def _hold(run_dir, pipe) -> None:
    with locked(run_dir):
        pipe.send(os.getpid())
        pipe.recv()


def test_a_second_job_is_refused_with_the_name_of_the_first_and_gets_in_after_its_kill(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=_hold, args=(tmp_path / "run", theirs))
    holder.start()
    pid = ours.recv()
    with pytest.raises(ConfigError, match=rf"in use by another job: process {pid} on"):
        with locked(tmp_path / "run"):
            pass
    holder.kill()
    holder.join()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()


def _hold_with_a_child(run_dir, pipe) -> None:
    """A worker of a user's reward, say, which outlives its parent."""
    started, starts = os.pipe()
    with locked(run_dir):
        child = os.fork()
        if child == 0:
            os.write(starts, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(started, 1)
        pipe.send(child)
        pipe.recv()


def test_a_forked_child_that_outlives_a_killed_job_does_not_hold_its_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=_hold_with_a_child, args=(tmp_path, theirs))
    holder.start()
    child = ours.recv()
    try:
        holder.kill()
        holder.join()
        with locked(tmp_path):
            os.kill(child, 0)
    finally:
        os.kill(child, 9)


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError):
        with locked(tmp_path):
            raise KeyError
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch, caplog):
    def no_locks(file, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        assert "cannot be locked" in caplog.text and "No locks available" in caplog.text


@pytest.mark.parametrize("kind", ["file", "circle"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path, kind):
    path = tmp_path / "run"
    path.write_text("") if kind == "file" else path.symlink_to(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        with locked(path / "deeper" if kind == "file" else path):
            pass
