"""Safetensors files one tensor at a time, by plain reads and writes.

The library maps whole files into memory: the pages a conversion has touched would stay its own, and its memory would
grow with the model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rest_megatron.convert.output_file import OutputFile
from rest_megatron.errors import CheckpointError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """Shape and dtype of a whole tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, whole or a piece of a larger one."""

    path: Path
    position: int
    """Of its first byte in the file."""
    spec: Spec
    start: tuple[int, ...]
    """Of the piece within the whole tensor; zeros: it is whole, or the first piece."""


def read_header(path: Path) -> dict[str, Stored]:
    """Name -> where in `path` it is. Raises CheckpointError: missing, truncated, no safetensors, or a foreign dtype."""
    try:
        with safe_open(path, framework="pt"):
            pass  # It checks the header against the size of the file, and that tensors fill it without a gap.
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", None) or {}
        starts = json.loads(metadata.get("DCP_SHARDING_INFO", "{}"))
        return {name: _stored(path, name, entry, 8 + length, starts) for name, entry in header.items()}
    except (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error!r}. The file is missing, truncated or not safetensors; copy it again"
        ) from error


def _stored(path: Path, name: str, entry: dict, base: int, starts: Mapping[str, dict]) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {name} is {entry['dtype']}; readable are {', '.join(DTYPES)}")
    spec = Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
    start = starts[name]["saved_offsets"] if name in starts else [0] * len(spec.shape)
    if len(start) != len(spec.shape) or not all(isinstance(offset, int) and offset >= 0 for offset in start):
        raise ValueError(f"{name}, {spec.shape}, starts at {start}")
    return Stored(path, base + entry["data_offsets"][0], spec, tuple(start))


def read_tensor(stored: Stored) -> Tensor:
    """The tensor, in memory of its own. Raises CheckpointError when the file ends before it."""
    content = torch.empty(stored.spec.nbytes, dtype=torch.uint8)
    try:
        with open(stored.path, "rb") as file:
            file.seek(stored.position)
            found = file.readinto(content.numpy().data)
    except OSError as error:
        raise CheckpointError(f"{stored.path} cannot be read: {error}") from error
    if found != stored.spec.nbytes:
        raise CheckpointError(f"{stored.path} ends within a tensor: it was cut off while it was read")
    return content.view(stored.spec.dtype).view(stored.spec.shape)


def write_tensors(
    file: OutputFile, names: Sequence[str], specs: Mapping[str, Spec], read: Callable[[str], Tensor]
) -> None:
    """Write the tensors `names` as one safetensors file, with one of them in memory at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    # Wide dtypes come first: each tensor is aligned to its own.
    order = sorted(names, key=lambda name: -specs[name].dtype.itemsize)
    position = 0
    for name in order:
        spec, end = specs[name], position + specs[name].nbytes
        header[name] = {"dtype": CODES[spec.dtype], "shape": spec.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(read(name).contiguous().view(-1).view(torch.uint8).numpy().data)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits; NaNs are compared like all else."""
    return a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])
