"""A checkpoint of one kind made into one of another, a tensor at a time, and compared with what it was made from."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rest_megatron.convert.compare import compare
from rest_megatron.convert.megatron_format import (
    EMBEDDING,
    check_padding,
    checkpoint_key,
    extra_states,
    merged_shape,
    padded_rows,
    parameters,
    read_parameter,
    rounded_up,
)
from rest_megatron.convert.opening import Model, open_weights
from rest_megatron.convert.partial import Partial, partial_output
from rest_megatron.convert.recognise import COMPANIONS, HUGGING_FACE, MEGATRON, TRACKER, Found
from rest_megatron.convert.tensor_file import Spec, write_tensors
from rest_megatron.convert.torch_dist_writer import TorchDistWriter
from rest_megatron.convert.weights import Weights, in_dtype, total_bytes
from rest_megatron.errors import CheckpointError
from rest_megatron.model.gather import weight_file_name
from rest_megatron.model.huggingface import INDEX, MAX_FILE_BYTES, write_companions
from rest_megatron.utils.files import unwritable
from rest_megatron.utils.grouping import groups_within

RELEASE = "release"
"""The directory that Megatron-LM reads when its tracker file names no iteration."""


@dataclass(frozen=True)
class Target:
    """What to make."""

    output: Path
    kind: str
    """HUGGING_FACE or MEGATRON."""
    dtype: torch.dtype | None = None
    """Of the output; None: that of the input."""
    vocab_multiple: int = 1
    """MEGATRON: the vocabulary is padded with zeros to a multiple of it."""
    file_bytes: int = MAX_FILE_BYTES
    """Of tensors in one file; one that is larger has a file of its own."""


@dataclass(frozen=True)
class Conversion:
    """What was made: how many tensors of what size, and how many files an earlier attempt had completed."""

    tensors: int
    size: int
    reused: int


def convert(model: Model, target: Target, seen: Callable[[int], None] = lambda size: None) -> Conversion:
    """Make `target` of `model`; `seen` is called with the bytes written, then twice with those compared.

    The output appears when it is complete and its tensors are the input's, bit for bit. What a kill leaves is
    resumed. Raises CheckpointError, and ConfigError for an output that is being made by another process or cannot be
    written.
    """
    if target.kind == MEGATRON:
        vocab_size = model.hf.vocab_size
        check_padding(target.output, EMBEDDING, rounded_up(vocab_size, target.vocab_multiple), vocab_size)
    weights = in_dtype(model.weights, target.dtype)
    with partial_output(target.output, _identity(model, target)) as partial:
        _write(partial, weights, model, target, seen)
    return Conversion(len(weights.tensors), total_bytes(weights), partial.reused)


def _write(partial: Partial, weights: Weights, model: Model, target: Target, seen: Callable[[int], None]) -> None:
    """Write everything, read it again, and give it its name."""
    if target.kind == HUGGING_FACE:
        _write_huggingface(partial, weights, target.file_bytes, seen)
    else:
        _write_megatron(partial, weights, model, target, seen)
    _write_companions(partial.directory / (COMPANIONS if target.kind == MEGATRON else ""), model, weights)
    made = partial.directory / (RELEASE if target.kind == MEGATRON else "")
    try:
        # Its pickle is our own.
        again = open_weights(Found(target.kind, made, None), model.hf, trust_pickle=True)
        difference = compare(weights, again, seen)
        what = "" if difference.identical else "; ".join(difference.lines())
    except CheckpointError as error:
        what = error.args[0]
    if what:
        partial.discard()
        raise CheckpointError(f"{target.output}, read again, is not what was written: {what}. Check its disk")
    partial.complete()


def _identity(model: Model, target: Target) -> dict[str, Any]:
    """What is made of what: an attempt at anything else is not resumed."""
    return {
        "input": _listing(model.found.directory),
        "companions": _listing(model.companions),
        "config": model.hf.to_json_string(),
        "kind": target.kind,
        "dtype": str(target.dtype),
        "vocab_multiple": target.vocab_multiple,
        "file_bytes": target.file_bytes,
    }


def _listing(directory: Path) -> dict[str, Any]:
    """A directory, and the names, sizes and times of its files."""
    found = {path.name: path.stat() for path in sorted(directory.iterdir()) if path.is_file()}
    return {str(directory.resolve()): {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}}


def _write_huggingface(partial: Partial, weights: Weights, file_bytes: int, seen: Callable[[int], None]) -> None:
    specs, read = weights.tensors, _counted(weights.read, seen)
    files = list(groups_within(file_bytes, specs, lambda name: specs[name].nbytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        file_name = weight_file_name(number, len(files))
        partial.add(file_name, functools.partial(write_tensors, names=names, specs=specs, read=read))
        weight_map |= dict.fromkeys(names, file_name)
    if len(files) > 1:
        total = total_bytes(weights)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        partial.add(INDEX, lambda file: file.write(json.dumps(index, indent=2, sort_keys=True).encode()))


def _write_megatron(
    partial: Partial, weights: Weights, model: Model, target: Target, seen: Callable[[int], None]
) -> None:
    specs, pieces = {}, {}
    for name, parts in parameters(model.hf).items():
        rows = padded_rows(name, parts, target.vocab_multiple)
        key, dtype = checkpoint_key(name), weights.tensors[parts[0].name].dtype
        specs[key], pieces[key] = Spec((rows, *merged_shape(parts)[1:]), dtype), parts

    def read(key: str) -> Tensor:
        return read_parameter(weights, pieces[key], model.hf, specs[key].shape[0])

    writer = TorchDistWriter(partial, RELEASE, model.hf.num_hidden_layers)
    for keys in groups_within(target.file_bytes, specs, lambda key: specs[key].nbytes):
        writer.add_tensors({key: specs[key] for key in keys}, _counted(read, seen))
    writer.add_extra_states(extra_states(model.hf))
    writer.finish()
    partial.add(TRACKER, lambda file: file.write(RELEASE.encode()))


def _write_companions(directory: Path, model: Model, weights: Weights) -> None:
    """config.json in the dtype of most tensors, the tokenizer and their like."""
    dtypes = [spec.dtype for spec in weights.tensors.values()]
    model.hf.dtype = max(set(dtypes), key=dtypes.count)
    try:
        directory.mkdir(exist_ok=True)
        write_companions(model.hf, model.companions, directory)
    except OSError as error:
        raise unwritable(directory, error) from error


def _counted(read: Callable[[str], Tensor], seen: Callable[[int], None]) -> Callable[[str], Tensor]:
    """`read`, with `seen` called with the bytes of each tensor."""

    def reading(name: str) -> Tensor:
        tensor = read(name)
        seen(tensor.nbytes)
        return tensor

    return reading
