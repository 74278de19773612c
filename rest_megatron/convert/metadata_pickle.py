"""The metadata of PyTorch's distributed checkpoints: a pickle, read without letting it run anything.

Only the classes PyTorch and Megatron-core put there are known, and of `torch` dtypes and sizes: none of them acts when
it is made.
"""

import pickle
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, ClassVar

import torch
from megatron.core.dist_checkpointing.strategies import torch as megatron_strategy
from torch.distributed.checkpoint import filesystem, metadata, planner
from torch.distributed.checkpoint.metadata import Metadata

from rest_megatron.errors import CheckpointError

NAME = ".metadata"
CLASSES = [
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.ChunkStorageMetadata,
    metadata.TensorProperties,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    planner.SavePlan,
    planner.WriteItem,
    planner.WriteItemType,
    planner.TensorWriteData,
    planner.BytesIOWriteData,
    megatron_strategy.MCoreMetadata,
    megatron_strategy.MCoreSavePlan,
]
KNOWN = {(one.__module__, one.__name__): one for one in CLASSES} | {
    ("torch", "Size"): torch.Size,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib._local", "PosixPath"): PosixPath,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
}


class _Unpickler(pickle._Unpickler):
    """The one in Python, whose parts have no types: that in C lets no one look before it sets attributes."""

    stack: list[Any]
    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Set the attributes of an object; UnpicklingError where it is a class, which all would share."""
        if callable(self.stack[-2]):
            raise pickle.UnpicklingError("it changes a class or a function")
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> object:
        """The classes above and torch's dtypes; UnpicklingError for all else."""
        found = KNOWN.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a checkpoint's metadata")
        return found


def read_metadata(directory: Path, trust_pickle: bool) -> Metadata:
    """The metadata of the checkpoint in `directory`.

    Raises CheckpointError without `trust_pickle`, for a pickle that names anything unknown, and for a broken one.
    """
    path = directory / NAME
    if not trust_pickle:
        raise CheckpointError(
            f"{path} is a Python pickle, a format that can carry code. It is read only with --trust-pickle; even "
            "so nothing but a checkpoint's metadata can come of it. Give it if you know who wrote the checkpoint"
        )
    try:
        with open(path, "rb") as file:
            found = load(file)
    # What a broken pickle does to the machine that reads it can raise anything.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise CheckpointError(f"{path} holds no metadata of a distributed checkpoint")
    return found


def load(file: BinaryIO) -> object:
    """The object of a pickle that names nothing but the classes above. Raises pickle.UnpicklingError."""
    return _Unpickler(file).load()
