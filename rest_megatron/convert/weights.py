"""Named tensors on disk, read one at a time: what conversions read from, check and compare."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from rest_megatron.checkpoint.manifest import Manifest
from rest_megatron.convert.tensor_file import Spec, Stored, read_header, read_tensor, same_bits
from rest_megatron.errors import CheckpointError
from rest_megatron.model.huggingface import INDEX, check_tensors, weight_files
from rest_megatron.model.mapping import expected_tensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Weights(Protocol):
    """Tensors by name."""

    @property
    def tensors(self) -> Mapping[str, Spec]:
        """Shapes and dtypes, in the order in which reading is cheapest."""

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU, in memory of its own. Raises CheckpointError."""


@dataclass(frozen=True)
class Files:
    """Tensors in safetensors files, each put together from its pieces."""

    tensors: Mapping[str, Spec]
    pieces: Mapping[str, list[Stored]]

    def read(self, name: str) -> Tensor:
        """The whole tensor. Raises CheckpointError when its pieces do not fill it."""
        spec, pieces = self.tensors[name], self.pieces[name]
        if len(pieces) == 1 and pieces[0].spec == spec:
            return read_tensor(pieces[0])
        whole = torch.empty(spec.shape, dtype=spec.dtype)
        for piece in pieces:
            corner = zip(piece.start, piece.spec.shape, strict=True)
            whole[tuple(slice(start, start + size) for start, size in corner)] = read_tensor(piece)
        return whole


@dataclass(frozen=True)
class Converted:
    """Some tensors of others, under other names or in another dtype; None: as they are."""

    source: Weights
    names: Mapping[str, str]
    """Name -> its name in `source`."""
    dtype: torch.dtype | None = None

    @property
    def tensors(self) -> dict[str, Spec]:
        """Names, shapes and dtypes."""
        found = {name: self.source.tensors[original] for name, original in self.names.items()}
        return {name: Spec(spec.shape, self.dtype or spec.dtype) for name, spec in found.items()}

    def read(self, name: str) -> Tensor:
        """The whole tensor, rounded to nearest where the dtype is narrower."""
        tensor = self.source.read(self.names[name])
        return tensor if self.dtype is None else tensor.to(self.dtype)


def in_dtype(weights: Weights, dtype: torch.dtype | None) -> Weights:
    """The weights in `dtype`, rounded once from what is stored; None: as they are."""
    if dtype is None:
        return weights
    if isinstance(weights, Converted):
        return replace(weights, dtype=dtype)
    return Converted(weights, {name: name for name in weights.tensors}, dtype)


def total_bytes(weights: Weights) -> int:
    """The size of all tensors."""
    return sum(spec.nbytes for spec in weights.tensors.values())


def open_huggingface(directory: Path, hf: PreTrainedConfig) -> Weights:
    """The tensors of a Hugging Face directory, in the order of the model.

    Raises CheckpointError for files that cannot be read, an index that is wrong about them, and tensors that are not
    those of `hf`. A tied head, which must be the embedding, and rotary buffers are left out.
    """
    headers = {path: read_header(path) for path in weight_files(directory)}
    stored: dict[str, Stored] = {}
    for path, header in headers.items():
        for name in header:
            if name in stored:
                raise CheckpointError(f"{name} is in {stored[name].path} and in {path}. Remove the file that is stale")
        stored.update(header)
    _check_index(directory, {name: entry.path.name for name, entry in stored.items()})
    check_tensors(directory, {name: entry.spec.shape for name, entry in stored.items()}, hf)
    if hf.tie_word_embeddings and HEAD in stored:
        _check_tied(directory, stored[HEAD], stored[EMBEDDING])
    names = expected_tensors(hf)
    return Files({name: stored[name].spec for name in names}, {name: [stored[name]] for name in names})


def _check_tied(directory: Path, head: Stored, embedding: Stored) -> None:
    """Raise CheckpointError unless a head that is left out is the embedding that stands in for it."""
    if not same_bits(read_tensor(head), read_tensor(embedding)):
        raise CheckpointError(
            f"{directory / 'config.json'} ties {HEAD} to {EMBEDDING}, but their values differ. "
            "Set tie_word_embeddings=false in config.json, or remove the head"
        )


def _check_index(directory: Path, files: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the index, where there is one, names the file of every tensor."""
    if not (directory / INDEX).exists():
        return
    named = json.loads((directory / INDEX).read_text())["weight_map"]
    for name in sorted(named.keys() | files.keys()):
        if named.get(name) != files.get(name):
            raise CheckpointError(
                f"{directory / INDEX} says that {name} is in {named.get(name)}, but it is in {files.get(name)}. "
                "Index and files are of different models: copy both again"
            )


def open_state(directory: Path, manifest: Manifest) -> Files:
    """Masters and moments of one of our checkpoints, float32, by their keys "<kind>/<Hugging Face name>".

    Raises CheckpointError unless the files hold every tensor of the manifest, whole.
    """
    pieces: dict[str, list[Stored]] = {key: [] for key in manifest.tensors}
    for path in sorted((directory / "state").glob("*.safetensors")):
        for key, stored in read_header(path).items():
            # Replicas of a piece are the same.
            if all(stored.start != other.start for other in pieces.setdefault(key, [])):
                pieces[key].append(stored)
    tensors = {key: Spec(tuple(entry["shape"]), torch.float32) for key, entry in manifest.tensors.items()}
    for key, spec in tensors.items():
        found = sum(piece.spec.nbytes for piece in pieces[key])
        if found != spec.nbytes:
            raise CheckpointError(f"{directory}: the pieces of {key} have {found} bytes, the tensor {spec.nbytes}")
    return Files(tensors, pieces)
