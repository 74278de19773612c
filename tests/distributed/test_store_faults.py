"""Checkpoints whose writing fails or is ended: the earlier ones stay, and every rank hears of it."""

import errno
import os

import pytest
import torch

from rest_megatron.checkpoint.choose import newest
from rest_megatron.distributed.parallel import Parallel
from tests.distributed import store_fault_cases as cases
from tests.distributed.cases import Layout
from tests.distributed.pool import WorkerPool

FULL, BROKEN, READ_ONLY = errno.ENOSPC, errno.EIO, errno.EROFS
# What fails, on which rank, from which of its calls in the second save on, and how; and whether that is complete then.
FAILURES = [
    (("os.fsync", 1, 1, FULL), False),
    (("os.fsync", 1, 2, BROKEN), False),
    (("os.fsync", 0, 2, FULL), False),
    (("os.fsync", 0, 7, BROKEN), False),
    (("os.mkdir", 0, 1, READ_ONLY), False),
    (("os.rename", 0, 1, READ_ONLY), False),
    (("os.rename", 0, 2, FULL), True),
]


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("failure, complete", FAILURES)
def test_a_rank_that_cannot_write_ends_the_save_on_all(pool, tiny_model, tmp_path, failure, complete, background):
    args = (tiny_model(), Layout(tp=2), tmp_path, failure, background)
    results = pool.run(cases.partly_failed, 2, *args)
    errors = {tuple(result["errors"]) for result in results}
    assert len(errors) == 1
    now, later = errors.pop()
    assert os.strerror(failure[-1]) in (later if background else now)
    assert (now if background else later) == ""
    for result in results:
        assert (result["found"], result["again"]) == (2 if complete else 1, 3)
    steps = [name for name in results[0]["left"] if name.startswith("step")]
    assert steps == ["step-00000001", "step-00000002"][: 1 + complete]


def test_a_disk_without_room_is_refused_with_numbers(pool, tiny_model, tmp_path):
    results = pool.run(cases.without_room, 2, tiny_model(), Layout(tp=2), tmp_path)
    for error, written in results:
        assert "0.000 GiB free, a checkpoint takes 0.003 GiB" in error and not written


def test_older_checkpoints_are_deleted_and_a_step_is_replaced(pool, tiny_model, tmp_path):
    (seen, _) = pool.run(cases.kept_and_replaced, 2, tiny_model(), Layout(dp=2), tmp_path)
    steps = [[1], [1, 2], [2, 3], [2, 3], [3, 4]]
    for number, ((names, newest_number), expected) in enumerate(zip(seen, steps, strict=True)):
        assert names == ["latest", *(f"step-0000000{step}" for step in expected)]
        assert newest_number == number


def test_the_checkpoint_of_another_model_is_refused(pool, tiny_model, tmp_path):
    pool.run(cases.kept_and_replaced, 1, tiny_model(), Layout(), tmp_path / "one")
    args = (tiny_model("llama"), tmp_path / "one" / "step-00000004", Layout(), tmp_path / "two")
    (error,) = pool.run(cases.another_model, 1, *args)
    assert "tensors" in error and "q_norm" in error and "another model than model.path" in error


def test_pickles_in_a_checkpoint_are_not_read(pool, tiny_model, tmp_path):
    pool.run(cases.loaded_beside_pickles, 1, tiny_model(), tmp_path / "checkpoints", tmp_path / "mark")
    assert not (tmp_path / "mark").exists()


ALONE = Parallel(torch.device("cpu"), *(0, 1), *(1, 0), *(1, 0), *(1, 0), num_chunks=1)


def test_a_kill_between_any_two_changes_of_the_disk_loses_no_checkpoint(pool, tiny_model, tmp_path):
    album = tmp_path / "album"
    pool.run(cases.photographed_saves, 1, tiny_model(), tmp_path / "checkpoints", album)
    versions = []
    for picture in sorted(album.iterdir()):
        found = newest(picture, ALONE, lambda text: None)
        assert found is not None, picture
        versions.append(found[1].state["actor"]["version"])
        assert not [path for path in picture.iterdir() if path.name.endswith((".tmp", ".old"))]
    assert len(versions) > 40
    assert versions == sorted(versions) and set(versions) == {1, 2, 3, 4}


POINTS = {"mid-shard": 1, "before the manifest": 1, "before the rename": 1, "before latest": 2}


def test_a_process_that_ends_in_a_save_loses_that_save_at_most(tiny_model, tmp_path):
    fresh = WorkerPool()  # a process may fork only before it has started threads
    codes = fresh.run(cases.killed_saves, 1, tiny_model(), tmp_path, list(POINTS))
    fresh.close()
    assert codes == [[9] * len(POINTS)]
    for point, step in POINTS.items():
        warnings: list[str] = []
        directory, manifest = newest(tmp_path / point, ALONE, warnings.append)
        assert manifest.step == step
        assert any("removed step-00000002.tmp" in text for text in warnings) == (step == 1)
