"""A directory that is written belongs to one job at a time: a lock that ends with its process, however that ends."""

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rest_megatron.errors import ConfigError

LOCK = ".lock"
logger = logging.getLogger(__name__)


@contextmanager
def locked(directory: Path, name: str = "run.dir") -> Iterator[None]:
    """Hold `directory`, which is made where it is missing, against every other job. For one rank.

    name: what errors call it. Raises ConfigError when another job holds it, or it cannot be written. A file system
    without locks is warned about.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK, "a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{name}={directory} on {platform.node()} cannot be written: {error}. Choose a directory that this user "
            "may make and write to"
        ) from error
    # A child shares the lock, and may outlive this process.
    os.register_at_fork(after_in_child=file.close)
    with file:
        _take(file, directory, name)
        yield


def _take(file: TextIO, directory: Path, name: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ConfigError(
            f"{name}={directory} is in use by another job: {file.read().strip() or 'its owner is not known'}\n"
            f"  Two jobs would overwrite each other's files. End that one, or choose another {name}"
        ) from None
    except OSError as error:
        logger.warning("%s=%s cannot be locked (%s): see to it that no second job uses it", name, directory, error)
    file.truncate(0)
    job = os.environ.get("SLURM_JOB_ID")
    file.write(f"process {os.getpid()} on {platform.node()}{f', Slurm job {job}' if job else ''}\n")
    file.flush()
