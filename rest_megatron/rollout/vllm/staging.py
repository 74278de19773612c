"""The directory that weights pass through on their way from the trainer's ranks to the server."""

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError, EngineError
from rest_megatron.rollout.vllm.client import Address

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PREFIX = "rest_megatron-"
LOCK = "in_use"
MIN_AGE = 60.0  # seconds; a younger directory may be about to be locked
HEADERS = 1 << 20  # bytes beside the tensors' own


def is_local(address: Address) -> bool:
    """Whether the server runs on this machine, as far as its address shows."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
    return address.uds is not None or httpx.URL(address.url).host in names


def choose_base(config: Config, address: Address, hosts: set[str]) -> Path:
    """The directory that trainer and server share. hosts: of all ranks of the trainer.

    Raises ConfigError where only the operator can name one.
    """
    named = config.rollout.sync_dir
    if named is None and len(hosts) == 1 and is_local(address):
        return SHARED_MEMORY
    if named is None:
        where = f"the trainer runs on {len(hosts)} nodes" if len(hosts) > 1 else f"the server is at {address}"
        refuse(
            config,
            "rollout.sync_dir",
            f"but {where}: {SHARED_MEMORY} does not reach from all ranks to the server",
            "Set it to a directory on a file system that all nodes of trainer and server share",
        )
    if not Path(named).is_dir():
        refuse(
            config,
            "rollout.sync_dir",
            f"is not a directory on {socket.gethostname()}",
            "Create it, or name another one",
        )
    # The server's working directory is another.
    return Path(named).resolve()


def require_room(base: Path, size: int) -> None:
    """Raise ConfigError unless `base` can take `size` bytes of tensors."""
    free, needed = shutil.disk_usage(base).free, size + HEADERS
    if free < needed:
        raise ConfigError(
            f"{base} has {free:,} bytes free; one version of the weights needs {needed:,}, and each update passes "
            "through there\n  Make room (a container's /dev/shm is 64 MB unless --shm-size says otherwise), or set "
            "rollout.sync_dir to a larger directory that trainer and server share"
        )


@contextmanager
def staging_directory(base: Path, version: int) -> Iterator[Path]:
    """A fresh directory that only this user can read, locked while it is in use and removed afterwards.

    Raises EngineError where it cannot be made.
    """
    try:
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}v{version}-", dir=base))
    except OSError as error:
        raise EngineError(f"no directory for the weights in {base} (rollout.sync_dir): {error}") from error
    try:
        with open(directory / LOCK, "w") as lock:
            _locked(lock.fileno())
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned(base: Path) -> None:
    """Delete what a killed trainer of this user left in `base`: directories that nobody has locked."""
    for directory in sorted(base.glob(f"{PREFIX}v*")):
        if _is_abandoned(directory):
            logger.warning("%s was left behind by a trainer that was killed; it is deleted", directory)
            shutil.rmtree(directory, ignore_errors=True)


def _is_abandoned(directory: Path) -> bool:
    try:
        state = directory.lstat()
        if state.st_uid != os.getuid() or time.time() - state.st_mtime < MIN_AGE:
            return False
        with open(directory / LOCK, "r+") as lock:
            return _locked(lock.fileno())
    except OSError:
        return False  # gone meanwhile, or no directory of ours


def _locked(descriptor: int) -> bool:
    """Take the lock that the operating system gives back when a process ends in any way; False if another has it.

    A file system without locks never says that it is free.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
