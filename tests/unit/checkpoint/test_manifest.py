"""The manifest of a checkpoint: what it holds, and that every changed byte is found."""

import json
from pathlib import Path
from unittest import mock

import pytest

from rest_megatron.checkpoint.manifest import (
    Manifest,
    check_files,
    check_sizes,
    read_manifest,
    step_directories,
)
from rest_megatron.errors import CheckpointError
from rest_megatron.utils.files import write_durably
from tests.unit.checkpoint.small_checkpoint import FILES, make_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return make_checkpoint(tmp_path / "step-00000003")


def refused(directory: Path) -> str:
    """Why the checkpoint cannot be used."""
    with pytest.raises(CheckpointError) as error:
        check_files(directory, read_manifest(directory))
    return str(error.value)


def test_a_manifest_is_read_as_it_was_written(checkpoint):
    manifest = read_manifest(checkpoint)
    check_files(checkpoint, manifest)
    assert manifest.step == 3 and manifest.layout["virtual_pipeline_model_parallel_size"] is None
    assert manifest.state["train"] == {"cursor": [1, 2], "mean": 0.1, "text": "naïve \ud800"}
    assert Manifest.from_json(manifest.to_json()) == manifest
    sha256_of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert manifest.files["hf/config.json"] == {"bytes": 0, "sha256": sha256_of_nothing}


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_of_a_file_is_found(checkpoint, name):
    content = FILES[name]
    for position in {0, len(content) // 2, len(content) - 1} if content else ():
        flipped = bytearray(content)
        flipped[position] ^= 1
        (checkpoint / name).write_bytes(flipped)
        assert name in refused(checkpoint) and "SHA-256" in refused(checkpoint)
    (checkpoint / name).write_bytes(content)
    check_files(checkpoint, read_manifest(checkpoint))


@pytest.mark.parametrize("name", FILES)
def test_a_cut_longer_or_missing_file_is_found_by_its_size(checkpoint, name):
    path, size = checkpoint / name, len(FILES[name])
    for content in (FILES[name] + b"x", FILES[name][:-1]):
        if len(content) != size:
            path.write_bytes(content)
            assert f"{path} has {len(content)} bytes, the manifest says {size}" in refused(checkpoint)
    path.unlink()
    assert f"{path} cannot be read" in refused(checkpoint)


def test_a_file_that_cannot_be_read_is_named(checkpoint):
    with mock.patch("hashlib.file_digest", side_effect=OSError(5, "Input/output error")):
        assert "Input/output error" in refused(checkpoint)


def test_a_tensor_file_the_manifest_does_not_list_is_found(checkpoint):
    (checkpoint / "notes.txt").write_text("a user's own notes do no harm")
    check_sizes(checkpoint, read_manifest(checkpoint))
    (checkpoint / "state" / "shard-00009.safetensors").write_bytes(b"")
    assert "state/shard-00009.safetensors, which the manifest does not list" in refused(checkpoint)


def test_only_the_hashes_of_the_named_files_are_computed(checkpoint):
    manifest = read_manifest(checkpoint)
    (checkpoint / "rng/rank-00000.safetensors").write_bytes(b"SEEDS")
    check_files(checkpoint, manifest, ["hf/config.json"])
    check_files(checkpoint, manifest, [])
    with pytest.raises(CheckpointError, match="rank-00000"):
        check_files(checkpoint, manifest, ["rng/rank-00000.safetensors"])


def test_no_flipped_bit_of_the_manifest_passes(checkpoint):
    path = checkpoint / "manifest.json"
    whole, good = path.read_bytes(), read_manifest(checkpoint)
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            # White space between two fields may become another kind of it.
            assert read_manifest(checkpoint) == good
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            assert whole[position : position + 1].isspace()


@pytest.mark.parametrize("kept", [0, 1, 0.5, 0.999])
def test_a_cut_manifest_is_refused(checkpoint, kept):
    path = checkpoint / "manifest.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else -1])
    assert f"{path} cannot be used" in refused(checkpoint)


@pytest.mark.parametrize(
    "content, reason",
    [
        ('{"format": 2}', "its format is 2"),
        ("{}", "its format is None"),
        ("[1]", "its format is None"),
        ("\x80", "Expecting value"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_foreign_manifest_is_refused(checkpoint, content, reason):
    (checkpoint / "manifest.json").write_text(content)
    assert reason in refused(checkpoint)


def test_a_manifest_of_other_fields_is_refused(checkpoint):
    manifest = read_manifest(checkpoint)
    with mock.patch("rest_megatron.checkpoint.manifest.asdict", return_value={"format": 1, "steps": 3}):
        text = manifest.to_json()
    assert json.loads(text)["steps"] == 3
    with pytest.raises(ValueError, match="its fields are format, steps"):
        Manifest.from_json(text)


def test_a_directory_without_a_manifest_is_unfinished(tmp_path):
    assert "has no manifest.json: it is not a checkpoint, or an unfinished one" in refused(tmp_path)


def test_step_directories_come_newest_first_and_unfinished_ones_not_at_all(tmp_path):
    assert step_directories(tmp_path / "absent") == []
    names = ("step-00000002", "step-00000010", "step-00000011.tmp", "step-00000010.old", "step-9", "latest")
    for name in names:
        (tmp_path / name).mkdir()
    assert [path.name for path in step_directories(tmp_path)] == ["step-00000010", "step-00000002"]


def test_a_full_disk_is_reported():
    with pytest.raises(CheckpointError, match="/dev/full cannot be written: .*No space left on device"):
        write_durably(Path("/dev/full"), b"x")
