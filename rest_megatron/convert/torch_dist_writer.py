"""Writes a Megatron-core distributed checkpoint (`torch_dist`), a tensor at a time and without a process group.

Layers are stacked along a leading axis, one chunk each: what a GPTModel's `sharded_state_dict` asks for by default.
"""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from rest_megatron.convert.metadata_pickle import NAME
from rest_megatron.convert.output_file import OutputFile
from rest_megatron.convert.partial import Partial
from rest_megatron.convert.tensor_file import Spec
from rest_megatron.convert.torch_dist import CONFIG, Region

# Megatron-LM takes a checkpoint without a version for one that merges q, k and v in another way.
COMMON = {"checkpoint_version": 3.0, "iteration": 0, "content_metadata": {"singleton_local_shards": False}}
BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.(.+)")


@dataclass
class TorchDistWriter:
    """Writes the directory `name` of `partial`, and its metadata at the end."""

    partial: Partial
    name: str
    num_layers: int
    metadata: Metadata = field(init=False, default_factory=lambda: Metadata({}, planner_data={}, storage_data={}))
    _files: int = field(init=False, default=0)
    _entries: dict[str, TensorStorageMetadata] = field(init=False, default_factory=dict)

    def add_tensors(self, specs: Mapping[str, Spec], read: Callable[[str], Tensor]) -> None:
        """Write tensors into one file; a layer's have its number in their names."""

        def write(file: OutputFile) -> list[list[int]]:
            places = []
            for name in specs:
                begin = file.bytes
                _save(_chunk(read(name), _region(name)), file)
                places.append([begin, file.bytes - begin])
            return places

        file = self._file_name()
        for (name, spec), place in zip(specs.items(), self.partial.add(f"{self.name}/{file}", write), strict=True):
            self._list(_region(name), spec, _StorageInfo(file, *place))

    def add_extra_states(self, keys: list[str]) -> None:
        """Write one empty extra state, which is that of every key."""

        def write(file: OutputFile) -> int:
            _save([None], file)
            return file.bytes

        file = self._file_name()
        length = self.partial.add(f"{self.name}/{file}", write)
        for key in keys:
            self.metadata.state_dict_metadata[key] = BytesStorageMetadata()
            self.metadata.storage_data[MetadataIndex(key)] = _StorageInfo(file, 0, length)

    def finish(self) -> None:
        """Write what says where everything is; metadata.json, which makes it a checkpoint, comes last."""
        self.metadata.storage_meta = StorageMeta()
        self.metadata.version = CURRENT_DCP_VERSION
        self.partial.add(f"{self.name}/{NAME}", lambda file: pickle.dump(self.metadata, file))
        self.partial.add(f"{self.name}/common.pt", lambda file: _save(COMMON, file))
        self.partial.add(f"{self.name}/{CONFIG}", lambda file: file.write(json.dumps(BACKEND).encode()))

    def _file_name(self) -> str:
        self._files += 1
        return f"__0_{self._files - 1}.distcp"

    def _list(self, region: Region, spec: Spec, place: _StorageInfo) -> None:
        size, start = spec.shape, [0] * len(spec.shape)
        if region.layer is not None:
            size, start = (self.num_layers, *size), [region.layer, *start]
        if region.key not in self._entries:
            entry = TensorStorageMetadata(TensorProperties(dtype=spec.dtype), torch.Size(size), [])
            self._entries[region.key] = self.metadata.state_dict_metadata[region.key] = entry
        sizes = spec.shape if region.layer is None else (1, *spec.shape)
        chunk = ChunkStorageMetadata(torch.Size(start), torch.Size(sizes))
        self._entries[region.key].chunks.append(chunk)
        self.metadata.storage_data[MetadataIndex(region.key, chunk.offsets)] = place


def _save(value: object, file: OutputFile) -> None:
    torch.save(value, cast(IO[bytes], file))  # of which it needs `write` and `flush`


def _region(name: str) -> Region:
    layer = _LAYER.fullmatch(name)
    return Region(name, None) if layer is None else Region(layer[1] + layer[3], int(layer[2]))


def _chunk(tensor: Tensor, region: Region) -> Tensor:
    """What is stored of the tensor: its own memory and no more, with the leading axis of a layer."""
    tensor = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
    return tensor.contiguous() if region.layer is None else tensor.contiguous().unsqueeze(0)
