"""What the gloo workers run for the tests of checkpoints that cannot be written, or whose writing is ended."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch.distributed as dist

from rest_megatron.checkpoint.choose import newest
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import CheckpointError
from tests.distributed.cases import Layout
from tests.distributed.store_cases import opened


@contextmanager
def failing(launch: Launch, call: str, rank: int, first: int, number: int) -> Iterator[None]:
    """Inside, `call` raises the OSError `number` on one rank from its `first` time on."""
    module, name = call.rsplit(".", 1)
    real, calls = getattr({"os": os, "shutil": shutil}[module], name), []

    def sometimes(*args, **kwargs):
        calls.append(args)
        if len(calls) >= first:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    with mock.patch(call, sometimes) if launch.rank == rank else ExitStack():
        yield


def error_of(function: Callable[[], None]) -> str:
    try:
        function()
    except CheckpointError as error:
        return str(error)
    return ""


def partly_failed(
    launch: Launch, model: Path, layout: Layout, directory: Path, failure: tuple[str, int, int, int], background: bool
) -> dict:
    """A second save in which one rank cannot write: the error everywhere, what is left, and a third save."""
    actor, parallel, checkpoints = opened(launch, model, layout, "float32", directory, background=background, keep=9)
    checkpoints.save(1, {})
    checkpoints.close()
    with failing(launch, *failure):
        errors = [error_of(lambda: checkpoints.save(2, {})), error_of(checkpoints.close)]
    left = sorted(path.name for path in directory.iterdir()) if parallel.rank == 0 else []
    found = newest(directory, parallel, lambda text: None)
    checkpoints.save(3, {})
    checkpoints.close()
    again = newest(directory, parallel, lambda text: None)
    return {"errors": errors, "found": found[1].step, "left": left, "again": again[1].step}


def without_room(launch: Launch, model: Path, layout: Layout, directory: Path) -> tuple[str, bool]:
    """A save to a disk with 1,000 bytes free: the error, and whether anything was written."""
    _, _, checkpoints = opened(launch, model, layout, "float32", directory)
    with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=1000)):
        return error_of(lambda: checkpoints.save(1, {})), any(directory.iterdir())


def kept_and_replaced(launch: Launch, model: Path, layout: Layout, directory: Path) -> list[tuple[list[str], str]]:
    """Names in the directory after each of some saves, and the manifest's "train" of the newest."""
    actor, parallel, checkpoints = opened(launch, model, layout, "float32", directory, keep=2)
    seen = []
    for number, step in enumerate((1, 2, 3, 3, 4)):
        checkpoints.save(step, {"number": number})
        found = newest(directory, parallel, lambda text: None)
        names = sorted(path.name for path in directory.iterdir())
        dist.barrier()
        seen.append((names, found[1].state["train"]["number"]))
    return seen


def another_model(launch: Launch, model: Path, other: Path, layout: Layout, directory: Path) -> str:
    """The error of loading the checkpoint of `model` into an actor of another shape."""
    _, _, checkpoints = opened(launch, model, layout, "float32", directory)
    return error_of(lambda: checkpoints.load(other))


class Planted:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def loaded_beside_pickles(launch: Launch, model: Path, directory: Path, mark: Path) -> None:
    """A load of a checkpoint with pickles at the places where PyTorch's and DeepSpeed's formats have theirs."""
    _, parallel, checkpoints = opened(launch, model, Layout(), "float32", directory)
    checkpoints.save(1, {})
    step = directory / "step-00000001"
    folders = {
        "": (".metadata", "common.pt"),
        "state": (".metadata", "common.pt", "mp_rank_00_model_states.pt"),
        "rng": ("rng.pt", "rank-00000.pt"),
        "hf": ("pytorch_model.bin",),
    }
    for name in (f"{folder}/{name}".lstrip("/") for folder, names in folders.items() for name in names):
        (step / name).write_bytes(pickle.dumps(Planted(mark)))
    assert newest(directory, parallel, lambda text: None)[0] == step
    checkpoints.load(step)


CHANGES = ("mkdir", "unlink", "rmdir", "rename", "fsync")


@contextmanager
def photographed(directory: Path, album: Path) -> Iterator[None]:
    """Inside, `directory` is copied to album/NNN before each call that changes or syncs it."""
    busy = False

    def watched(real: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal busy
            if not busy and directory.exists():
                busy = True
                shutil.copytree(directory, album / f"{len(list(album.iterdir())):03d}")
                busy = False
            return real(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in CHANGES:
            stack.enter_context(mock.patch.object(os, name, watched(getattr(os, name))))
        yield


def photographed_saves(launch: Launch, model: Path, directory: Path, album: Path) -> None:
    """Saves of steps 1, 2, 2 again and 3, keeping one, photographed from the second on. The version is the save's."""
    actor, _, checkpoints = opened(launch, model, Layout(), "float32", directory, keep=1)
    album.mkdir()
    for version, step in enumerate((1, 2, 2, 3), 1):
        actor.version = version
        with photographed(directory, album) if version > 1 else ExitStack():
            checkpoints.save(step, {})


def killed_saves(launch: Launch, model: Path, directory: Path, points: list[str]) -> list[int]:
    """For each point a process that saves step 1, and ends there while it saves step 2. The exit codes."""
    codes = []
    for point in points:
        child = os.fork()
        if child == 0:
            try:
                _save_until(launch, model, directory / point, point)
            finally:
                os._exit(3)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return codes


def _save_until(launch: Launch, model: Path, directory: Path, point: str) -> None:
    _, _, checkpoints = opened(launch, model, Layout(), "float32", directory)
    checkpoints.save(1, {})

    def end(*args):
        if point == "mid-shard":
            (shard,) = (directory / "step-00000002.tmp" / "state").iterdir()
            os.truncate(shard, shard.stat().st_size // 2)
        os._exit(9)

    targets = {
        "mid-shard": "os.fsync",
        "before the manifest": "rest_megatron.checkpoint.store.write_manifest",
        "before the rename": "rest_megatron.checkpoint.store.replace_directory",
        "before latest": "rest_megatron.checkpoint.store.replace_durably",
    }
    with mock.patch(targets[point], end):
        checkpoints.save(2, {})
