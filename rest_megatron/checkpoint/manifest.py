"""The manifest of a checkpoint: what it holds, and by which a file that changed afterwards is found.

A checkpoint directory is complete when its manifest is there; it is whole when every file is as the manifest says.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rest_megatron.errors import CheckpointError
from rest_megatron.utils.files import sync, write_durably

FORMAT = 1
NAME = "manifest.json"
STEP = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    format: int
    step: int
    """Finished steps of the run."""
    model_dtype: str
    """Of the working weights, which are the masters rounded to it."""
    layout: dict[str, int | None]
    """*_parallel_size and world_size of the run that saved it."""
    versions: dict[str, str]
    state: dict[str, Any]
    """Plain JSON: "train" is the training loop's, "actor" the actor's."""
    tensors: dict[str, dict[str, Any]]
    """Key: {"shape": [...], "dtype": "float32"}; shapes are those of the whole tensors."""
    files: dict[str, dict[str, Any]]
    """Path relative to the directory: {"bytes": ..., "sha256": hex}."""

    def to_json(self) -> str:
        """The text of manifest.json, its own hash included."""
        content = asdict(self)
        return json.dumps({**content, "sha256": _hash(content)}, sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The inverse of `to_json`. Raises ValueError: not JSON, another format, or not what its own hash says."""
        content = json.loads(text)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise ValueError(f"its format is {found!r}; this version of rest_megatron reads format {FORMAT}")
        if content.pop("sha256", None) != _hash(content):
            raise ValueError("its content does not have the hash it names: it was changed or damaged")
        if content.keys() != {field.name for field in fields(cls)}:
            raise ValueError(f"its fields are {', '.join(sorted(content))}")
        return cls(**content)


def _hash(content: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of the canonical JSON."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory. Raises CheckpointError: missing, unreadable, damaged, another format."""
    path = directory / NAME
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} has no {NAME}: it is not a checkpoint, or an unfinished one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest; the disk has it, and the directory's entries, on return. Raises CheckpointError."""
    write_durably(directory / NAME, manifest.to_json().encode())
    sync(directory)


def file_entry(path: Path) -> dict[str, Any]:
    """{"bytes": ..., "sha256": hex} of a file, read in small blocks. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return {"bytes": file.tell(), "sha256": digest.hexdigest()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def check_name(directory: Path, manifest: Manifest) -> None:
    """Raise CheckpointError when a directory with the name of a step holds another one."""
    named = STEP.fullmatch(directory.name)
    if named and int(named.group(1)) != manifest.step:
        raise CheckpointError(f"{directory} holds step {manifest.step}: it was renamed. Give it its name back")


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Raise CheckpointError unless every listed file is there with its size, and no safetensors file is unlisted."""
    for name, entry in manifest.files.items():
        path = directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}. The manifest lists it; copy it again") from error
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {size} bytes, the manifest says {entry['bytes']}: it was cut off or exchanged"
            )
    # The reader of the tensors takes every such file.
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*.safetensors")}
    if unlisted := sorted(found - manifest.files.keys()):
        raise CheckpointError(f"{directory} holds {unlisted[0]}, which the manifest does not list. Remove it")


def check_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Raise CheckpointError unless the sizes of all files, and the hashes of those `names` (None: all), are right."""
    check_sizes(directory, manifest)
    for name in manifest.files if names is None else names:
        found, expected = file_entry(directory / name), manifest.files[name]
        if found != expected:
            raise CheckpointError(
                f"{directory / name} has the SHA-256 {found['sha256']}, the manifest says {expected['sha256']}: "
                "its content was changed or damaged"
            )


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories in `checkpoints` that have the name of a finished step, newest first; [] where there are none."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if STEP.fullmatch(path.name)), reverse=True)
