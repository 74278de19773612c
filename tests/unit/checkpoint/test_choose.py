"""Which checkpoint a run goes on from, why others are skipped, and which are kept."""

import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch

from rest_megatron.checkpoint.choose import newest, prune, verify
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.utils.files import delete_directory, replace_directory
from tests.unit.checkpoint.small_checkpoint import make_checkpoint

ALONE = Parallel(torch.device("cpu"), *(0, 1), *(1, 0), *(1, 0), *(1, 0), num_chunks=1)
SHARD = "state/shard-00001.safetensors"


@pytest.fixture
def checkpoints(tmp_path):
    """Steps 1 to 5, all whole."""
    for step in range(1, 6):
        make_checkpoint(tmp_path / f"step-{step:08d}", step)
    return tmp_path


def chosen(checkpoints: Path) -> tuple[str | None, list[str]]:
    """The name of the newest whole checkpoint, and the warnings."""
    warnings: list[str] = []
    found = newest(checkpoints, ALONE, warnings.append)
    assert found is None or found[1].step == int(found[0].name[-8:])
    return found and found[0].name, warnings


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def flip(directory: Path, name: str = SHARD) -> None:
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / name).write_bytes(content)


def cut(directory: Path, name: str = SHARD) -> None:
    os.truncate(directory / name, 3)


def remove(directory: Path, name: str = SHARD) -> None:
    (directory / name).unlink()


MANIFEST = "manifest.json"
DAMAGE = [
    (flip, SHARD, "the manifest says"),
    (cut, SHARD, "has 3 bytes"),
    (remove, SHARD, "cannot be read"),
    (flip, "rng/rank-00000.safetensors", "SHA-256"),
    (flip, MANIFEST, "cannot be used"),
    (cut, MANIFEST, "cannot be used"),
    (remove, MANIFEST, "has no manifest.json"),
]


def test_the_newest_is_chosen_in_silence(checkpoints):
    assert chosen(checkpoints) == ("step-00000005", [])


@pytest.mark.parametrize("harm, name, reason", DAMAGE, ids=[f"{h.__name__}-{n}" for h, n, _ in DAMAGE])
def test_a_damaged_one_is_skipped_with_the_reason(checkpoints, harm, name, reason):
    for step in (5, 4):
        harm(checkpoints / f"step-0000000{step}", name)
    before = names(checkpoints)
    name, warnings = chosen(checkpoints)
    assert name == "step-00000003"
    assert [text.split()[1] for text in warnings] == ["step-00000005", "step-00000004"]
    assert all(reason in text for text in warnings)
    assert names(checkpoints) == before, "what is damaged is left to the user"


@pytest.mark.parametrize("harm, name, reason", DAMAGE, ids=[f"{h.__name__}-{n}" for h, n, _ in DAMAGE])
def test_a_named_one_that_is_damaged_is_refused(checkpoints, harm, name, reason):
    directory = checkpoints / "step-00000005"
    assert verify(directory, ALONE).step == 5
    harm(directory, name)
    with pytest.raises(CheckpointError, match=reason):
        verify(directory, ALONE)


def test_a_step_under_another_name_is_skipped(checkpoints):
    (checkpoints / "step-00000002").rename(checkpoints / "step-00000009")
    name, (warning,) = chosen(checkpoints)
    assert name == "step-00000005" and "step-00000009 holds step 2: it was renamed" in warning
    copy = shutil.copytree(checkpoints / "step-00000003", checkpoints / "before-the-move")
    assert verify(copy, ALONE).step == 3, "a directory that has no step's name may have any"


def test_nothing_whole_is_none(checkpoints, tmp_path):
    assert chosen(tmp_path / "absent") == (None, [])
    for path in checkpoints.iterdir():
        cut(path)
    name, warnings = chosen(checkpoints)
    assert name is None and len(warnings) == 5


def test_what_a_kill_left_is_tidied_up(checkpoints):
    (checkpoints / "step-00000005").rename(checkpoints / "step-00000005.old")
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000004.old")
    shutil.copytree(checkpoints / "step-00000004", checkpoints / "step-00000006.tmp")
    name, warnings = chosen(checkpoints)
    assert name == "step-00000005"
    assert names(checkpoints) == [f"step-0000000{step}" for step in range(1, 6)]
    assert "step-00000005.old is step-00000005 again" in warnings[0]
    assert "removed step-00000006.tmp" in warnings[1]


def test_latest_is_a_hint(checkpoints):
    (checkpoints / "latest").write_text("step-00000003\n")
    assert chosen(checkpoints) == ("step-00000005", [])
    for content in (b"step-00000007", b"", b"../../etc/passwd", b"\0", b"x" * 5000, b"\xff"):
        (checkpoints / "latest").write_bytes(content)
        name, warnings = chosen(checkpoints)
        assert name == "step-00000005"
        assert len(warnings) == (content != b"") and len("".join(warnings)) < 1000


def test_the_newest_is_that_of_the_last_step_whatever_its_files_dates(checkpoints):
    for age, path in enumerate(sorted(checkpoints.iterdir(), reverse=True)):
        for file in (path, *path.rglob("*")):
            os.utime(file, (1e9 + 1000 * age, 1e9 + 1000 * age))
    assert chosen(checkpoints) == ("step-00000005", [])


def kept(checkpoints: Path, keep: int, written: int = 5) -> list[int]:
    prune(checkpoints, keep, checkpoints / f"step-0000000{written}")
    return [int(name[-1]) for name in names(checkpoints)]


@pytest.mark.parametrize("keep, steps", [(1, [5]), (2, [4, 5]), (7, [1, 2, 3, 4, 5])])
def test_the_newest_ones_are_kept(checkpoints, keep, steps):
    assert kept(checkpoints, keep) == steps


def test_one_that_lacks_a_file_does_not_count(checkpoints):
    cut(checkpoints / "step-00000004")
    remove(checkpoints / "step-00000002", MANIFEST)
    assert kept(checkpoints, 2) == [3, 4, 5]
    assert kept(checkpoints, 1) == [5]


def test_the_one_just_written_stays_though_newer_ones_are_there(checkpoints):
    assert kept(checkpoints, 2, written=1) == [1, 4, 5]


def test_what_is_half_deleted_does_not_look_complete(checkpoints):
    with mock.patch("shutil.rmtree"):
        delete_directory(checkpoints / "step-00000005")
    assert "step-00000005" not in names(checkpoints)
    assert chosen(checkpoints)[0] == "step-00000004"


@pytest.mark.parametrize("broken", range(1, 5))
@pytest.mark.parametrize("call", ["os.rename", "os.fsync"])
def test_a_replacement_that_fails_leaves_one_of_the_two(checkpoints, call, broken):
    directory, complete = checkpoints / "step-00000005", checkpoints / "new.tmp"
    shutil.copytree(directory, complete)
    (complete / "mark").write_text("new")
    real, calls = getattr(os, call.removeprefix("os.")), []

    def sometimes(*args):
        calls.append(args)
        if len(calls) == broken:
            raise OSError(30, "Read-only file system")
        real(*args)

    failed = False
    with mock.patch(call, sometimes):
        try:
            replace_directory(directory, complete)
        except CheckpointError as error:
            failed = "Read-only file system" in str(error)
    assert failed == (broken <= 2)
    assert verify(directory, ALONE).step == 5
    assert (directory / "mark").exists() or failed
    assert "step-00000005.old" not in names(checkpoints)
