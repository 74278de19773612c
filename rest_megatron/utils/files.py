"""Durable writes, and files and directories that others find complete or not at all.

A function here returns when the disk has what it did; `replacing` alone leaves that to the system.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rest_megatron.errors import CheckpointError, DataError

UNFINISHED = ".tmp"  # being written, or being deleted
ASIDE = ".old"  # waiting for its successor to take its name


def write_durably(path: Path, content: bytes) -> None:
    """Write `content` to `path` and wait until the disk has it. Raises CheckpointError."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def sync(path: Path) -> None:
    """Wait until the disk has the file, or the entries of the directory, at `path`. Raises CheckpointError."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error


def sync_tree(directory: Path) -> None:
    """Wait until the disk has everything in the directory, and its entries. Raises CheckpointError."""
    for path in sorted(directory.rglob("*")):
        sync(path)
    sync(directory)


def replace_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a reader finds the old file or the new one. Raises CheckpointError."""
    unfinished = path.with_name(path.name + UNFINISHED)
    write_durably(unfinished, content)
    rename(unfinished, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a file to write beside `path`, whose place it takes at the end; an error leaves nothing behind.

    Raises DataError when it cannot be written.
    """
    target = Path(os.path.realpath(path))  # Path.resolve raises where links run in a circle
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if os.path.lexists(target) and not target.is_file():
            raise DataError(f"{path} is not a file; name one that may be replaced")
        yield part
        os.replace(part, target)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # where it could not be made, it cannot be removed: the error above says why
            part.unlink()


def rename(path: Path, to: Path) -> None:
    """Rename, and wait until the disk has it. Raises CheckpointError."""
    try:
        os.rename(path, to)
    except OSError as error:
        raise unwritable(to, error) from error
    sync(to.parent)


def replace_directory(directory: Path, complete: Path) -> None:
    """Put `complete` in the place of `directory`, which steps aside first. Raises CheckpointError, as it was before.

    After a kill between the two renames neither has the name; `recover` gives it back to the old one.
    """
    aside = directory.with_name(directory.name + ASIDE)
    try:
        if directory.exists():
            shutil.rmtree(aside, ignore_errors=True)
            rename(directory, aside)
        rename(complete, directory)
    except CheckpointError:
        if aside.exists():
            recover(aside)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def recover(aside: Path) -> bool:
    """Rename a directory that stepped aside back, and return True; or delete it when its successor has the name."""
    directory = aside.with_name(aside.name.removesuffix(ASIDE))
    if directory.exists():
        shutil.rmtree(aside, ignore_errors=True)
        return False
    rename(aside, directory)
    return True


def delete_directory(directory: Path) -> None:
    """Delete by way of a rename, so that a kill leaves nothing half-deleted under the name. Raises CheckpointError."""
    unfinished = directory.with_name(directory.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    rename(directory, unfinished)
    # What an open file of a network disk holds back goes at the next start.
    shutil.rmtree(unfinished, ignore_errors=True)


def unwritable(path: Path, reason: object) -> CheckpointError:
    """The error of a file or directory that cannot be written."""
    return CheckpointError(f"{path} cannot be written: {reason}. Check its disk's free space and permissions")
