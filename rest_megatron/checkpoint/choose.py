"""Which checkpoints of a run count: the newest that is whole, and those that are kept."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from rest_megatron.checkpoint.manifest import (
    Manifest,
    check_files,
    check_name,
    check_sizes,
    read_manifest,
    step_directories,
)
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.utils.files import ASIDE, UNFINISHED, delete_directory, recover

LATEST = "latest"


def newest(checkpoints: Path, parallel: Parallel, warn: Callable[[str], None]) -> tuple[Path, Manifest] | None:
    """The newest checkpoint in `checkpoints` whose every file has its size and hash; None when there is none.

    What a kill left unfinished is tidied up. `warn` is called with it on rank 0, and with each checkpoint that
    is skipped and the reason. Collective.
    """
    for directory in parallel.on_main(lambda: _tidy(checkpoints, warn)):
        try:
            return directory, verify(directory, parallel)
        except CheckpointError as error:
            if parallel.rank == 0:
                warn(f"checkpoint {directory.name} is skipped: {error.args[0]}")
    return None


def verify(directory: Path, parallel: Parallel) -> Manifest:
    """The manifest of a checkpoint whose every file has its size and hash. Raises CheckpointError on all ranks.

    Collective: each rank hashes its share of the files.
    """
    manifest = parallel.on_main(lambda: _read(directory))
    by_size = sorted(manifest.files, key=lambda name: (manifest.files[name]["bytes"], name))
    names = by_size[parallel.rank :: parallel.world_size]
    parallel.on_all(lambda: check_files(directory, manifest, _beating(names, parallel)))
    return manifest


def _read(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    check_name(directory, manifest)
    check_sizes(directory, manifest)
    return manifest


def _beating(names: list[str], parallel: Parallel) -> Iterator[str]:
    for name in names:
        parallel.watch.beat()
        yield name


def _tidy(checkpoints: Path, warn: Callable[[str], None]) -> list[Path]:
    """Settle what a kill left unfinished; the directories that have the name of a finished step, newest first."""
    try:
        for path in sorted(checkpoints.glob("step-*")):
            if path.name.endswith(UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
                warn(f"removed {path.name}, a checkpoint that was not finished")
            elif path.name.endswith(ASIDE) and recover(path):
                warn(f"{path.name} is {path.name.removesuffix(ASIDE)} again: its successor was not finished")
        latest = checkpoints / LATEST
        latest.with_name(LATEST + UNFINISHED).unlink(missing_ok=True)
        steps = step_directories(checkpoints)
        named = latest.read_text(errors="replace").strip() if latest.exists() else None
        if named and named not in {path.name for path in steps}:
            warn(f"{latest} names {named[:40]!r}, which is not there")
        return steps
    except OSError as error:
        raise CheckpointError(f"{checkpoints} cannot be read: {error}") from error


def prune(checkpoints: Path, keep: int, written: Path) -> None:
    """Delete what is older than the newest `keep` checkpoints that have all their files, but not `written`.

    One that lacks a file does not count. Raises CheckpointError.
    """
    kept = 0
    for directory in step_directories(checkpoints):
        if kept < keep or directory == written:
            kept += _has_all_files(directory)
        else:
            delete_directory(directory)


def _has_all_files(directory: Path) -> bool:
    try:
        check_sizes(directory, read_manifest(directory))
    except CheckpointError:
        return False
    return True
