"""Processes of the comparison, one thread each, and locks, so that two invocations never do the same run."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from arms import EXAMPLES


class Failed(Exception):
    """A process ended with an error; says which, and where its output is."""


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[IO | None]:
    """Hold the lock file `path`. wait: until another holder ends; otherwise None is given where there is one.

    The processes that are started with it hold it too, so that it outlives an invocation that was killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file


def rest_megatron(command: str, files: Sequence[Path], overrides: Sequence[str], log: Path, lock: IO) -> None:
    """One process of the program, its output in `log`. Raises Failed."""
    configs = [word for file in files for word in ("-c", str(file))]
    call([sys.executable, "-m", "rest_megatron", command, *configs, *overrides], log, lock)


def call(words: Sequence[str], log: Path, lock: IO) -> None:
    """Run a command on one thread, from the repository's root. Raises Failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w", encoding="utf-8") as stream:
        done = subprocess.run(
            words,
            env=environment,
            cwd=EXAMPLES.parent,
            stdout=stream,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
        )
    if done.returncode:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}; see {log}")


def commit() -> str:
    """What is checked out, "-dirty" where files differ from it; "unknown" without git."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(words, cwd=EXAMPLES.parent, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
