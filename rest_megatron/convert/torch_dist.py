"""Megatron-core's distributed checkpoints (`torch_dist`) as named tensors, read without a process group.

Layers may be stacked along a leading axis, or have keys of their own; here every layer has names of its own.
"""

import io
import json
import math
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from rest_megatron.convert.metadata_pickle import read_metadata
from rest_megatron.convert.tensor_file import Spec
from rest_megatron.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONFIG = "metadata.json"
STACKED = re.compile(r"((?:.+\.)?decoder\.layers\.)(?!\d)(.+)")
WRAPPER = re.compile(r"(?:(?:module|model)\.)+")
MAX_LAYERS = 10_000  # a larger count is a damaged one
NOT_MODEL = re.compile(r"(?:chained_\d+\.)?optimizer\.|opt_param_scheduler|rng_state|rerun_state_machine")


@dataclass(frozen=True)
class Region:
    """A tensor of the checkpoint, or one layer of a stacked one."""

    key: str
    layer: int | None

    def box(self, size: torch.Size) -> list[tuple[int, int]]:
        """Begin and end along each axis of the stored tensor."""
        whole = [(0, n) for n in size]
        return whole if self.layer is None else [(self.layer, self.layer + 1), *whole[1:]]


class TorchDist:
    """The model's tensors in one checkpoint directory; those of the optimizer are only counted.

    Raises CheckpointError: no checkpoint of this kind, its metadata may not be read (see `read_metadata`), or a
    tensor's chunk is not on the disk.
    """

    def __init__(self, directory: Path, trust_pickle: bool) -> None:
        check_config(directory)
        self.directory = directory
        self.metadata: Metadata = read_metadata(directory, trust_pickle)
        self.tensors: dict[str, Spec] = {}
        self.regions: dict[str, Region] = {}
        self._entries: dict[str, TensorStorageMetadata] = {}
        self.others: dict[str, Spec] = {}
        """Optimizer states and the like, by key."""
        try:
            for key, entry in self.metadata.state_dict_metadata.items():
                if isinstance(entry, TensorStorageMetadata) and "_extra_state" not in key:
                    self._entries[key] = entry
                    self._add(key, Spec(tuple(entry.size), entry.properties.dtype))
            self._check_storage()
        # A damaged pickle can have anything anywhere.
        except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, OSError) as error:
            raise CheckpointError(
                f"{directory}: its metadata cannot be used: {error!r}. Copy the checkpoint again"
            ) from error

    def _add(self, key: str, spec: Spec) -> None:
        if not (isinstance(spec.dtype, torch.dtype) and all(isinstance(size, int) for size in spec.shape)):
            raise ValueError(f"{key} is {spec}")
        if NOT_MODEL.match(key):
            self.others[key] = spec
            return
        stacked = STACKED.fullmatch(key)
        if stacked is None:
            layers = {key: Region(key, None)}
        else:
            if spec.shape[0] > MAX_LAYERS:
                raise ValueError(f"{key} has {spec.shape[0]} layers")
            layers = {f"{stacked[1]}{i}.{stacked[2]}": Region(key, i) for i in range(spec.shape[0])}
            spec = Spec(spec.shape[1:], spec.dtype)
        for name, region in layers.items():
            name = WRAPPER.sub("", name, count=1) if WRAPPER.match(name) else name
            self.tensors[name], self.regions[name] = spec, region

    def _check_storage(self) -> None:
        """Every chunk of the model lies within a file of this directory."""
        sizes = {path.name: path.stat().st_size for path in self.directory.iterdir() if path.is_file()}
        for key in {region.key for region in self.regions.values()}:
            entry = self._entries[key]
            for chunk in entry.chunks:
                if not len(chunk.offsets) == len(chunk.sizes) == len(entry.size):
                    raise ValueError(f"a chunk of {key} has {len(chunk.sizes)} axes")
                info = self.metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
                if info is None:
                    raise CheckpointError(f"{self.directory} does not say where {key} at {tuple(chunk.offsets)} is")
                if getattr(info, "transform_descriptors", None):
                    raise CheckpointError(f"{self.directory}: {key} is stored compressed; save it without that")
                if sizes.get(info.relative_path, -1) < info.offset + info.length:
                    raise CheckpointError(
                        f"{self.directory}: {key} should be in {info.relative_path} up to byte "
                        f"{info.offset + info.length}, which is missing or shorter. Copy the checkpoint again"
                    )

    def read(self, name: str) -> Tensor:
        """The whole tensor, put together from its chunks, with one of them in memory at a time."""
        spec, region = self.tensors[name], self.regions[name]
        entry = self._entries[region.key]
        box = region.box(entry.size)
        whole: Tensor | None = None
        filled = 0
        for chunk in entry.chunks:
            ends = zip(chunk.offsets, chunk.sizes, strict=True)
            common = [(max(a, o), min(b, o + n)) for (a, b), (o, n) in zip(box, ends, strict=True)]
            if not all(begin < end for begin, end in common):
                continue
            tensor = self._chunk(region.key, chunk, spec.dtype)
            filled += math.prod(b - a for a, b in common)
            if list(chunk.sizes) == [end - begin for begin, end in box]:
                whole = tensor
                continue
            inner = [slice(a - o, b - o) for (a, b), o in zip(common, chunk.offsets, strict=True)]
            outer = [slice(a - begin, b - begin) for (a, b), (begin, _) in zip(common, box, strict=True)]
            whole = torch.empty([end - begin for begin, end in box], dtype=spec.dtype) if whole is None else whole
            whole[tuple(outer)] = tensor[tuple(inner)]
        if whole is None or filled != whole.numel():
            raise CheckpointError(f"{self.directory}: the chunks of {name} do not make up its {spec.shape}")
        return whole.view(spec.shape)

    def _chunk(self, key: str, chunk: ChunkStorageMetadata, dtype: torch.dtype) -> Tensor:
        info = self.metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.directory / info.relative_path
        try:
            with open(path, "rb") as file:
                part = io.BufferedReader(_Part(file, info.offset, info.length))
                # torch.load reads past a bit that flipped.
                if bad := zipfile.ZipFile(part).testzip():
                    raise ValueError(f"{bad} of {key} does not have its CRC-32")
                part.seek(0)
                tensor = torch.load(part, map_location="cpu", weights_only=True)
        # What a damaged archive does to the two readers can raise anything.
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Copy the checkpoint again") from error
        if not isinstance(tensor, Tensor) or tensor.shape != chunk.sizes or tensor.dtype != dtype:
            raise CheckpointError(f"{path} at byte {info.offset} is not {key}, {tuple(chunk.sizes)} of {dtype}")
        return tensor


class _Part(io.RawIOBase):
    """A range of a file, as a file."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self.file, self.start, self.length, self.position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        self.file.seek(self.start + self.position)
        count = self.file.readinto(memoryview(buffer)[: max(0, self.length - self.position)])
        self.position += count
        return count


def is_torch_dist(directory: Path) -> bool:
    """Whether Megatron-core wrote a distributed checkpoint here, of whatever backend."""
    try:
        return "sharded_backend" in json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def check_config(directory: Path) -> None:
    """Raise CheckpointError unless metadata.json names the backend `torch_dist`."""
    path = directory / CONFIG
    try:
        backend = json.loads(path.read_text(encoding="utf-8"))["sharded_backend"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be used: {error!r}") from error
    if backend != "torch_dist":
        raise CheckpointError(
            f"{path} names the backend {backend!r}; only torch_dist is read. Save it with --ckpt-format torch_dist"
        )
