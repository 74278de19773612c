"""`inspect`: what a checkpoint is and holds, by reading no tensor but a head that must be the embedding."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import torch

from rest_megatron.checkpoint.manifest import Manifest, read_manifest
from rest_megatron.commands.catalogue import Inspect
from rest_megatron.convert.meter import size_text
from rest_megatron.convert.opening import read_config
from rest_megatron.convert.recognise import HUGGING_FACE, STEP, Found, recognise
from rest_megatron.convert.tensor_file import Spec
from rest_megatron.convert.torch_dist import TorchDist
from rest_megatron.convert.weights import open_huggingface

WIDTH = 100  # of the JSON of one entry of the state


def main(options: Inspect, stream: TextIO) -> None:
    """Write what options.input holds to `stream`, a line per fact. Raises CheckpointError for what cannot be read."""
    found = recognise(options.input, read_manifest, lambda text: stream.write(f"{text}\n"))
    if found.kind == STEP:
        facts = _step(read_manifest(found.directory))
    elif found.kind == HUGGING_FACE:
        facts = _tensors(open_huggingface(found.directory, read_config(found.directory)).tensors)
    else:
        facts = _megatron(found.directory, options.trust_pickle)
    what = ("kind", found.kind), ("directory", str(found.directory))
    lines = [*what, *_model(found), *facts, ("files", _files(found.directory))]
    width = max(len(name) for name, _ in lines)
    for name, fact in lines:
        stream.write(f"{name:<{width}}  {fact}\n")


def _model(found: Found) -> Iterator[tuple[str, str]]:
    if found.companions is None:
        yield "model", "no config.json"
        return
    hf = read_config(found.companions)
    head = "tied" if hf.tie_word_embeddings else "untied"
    yield "model", f"{hf.model_type}, {hf.num_hidden_layers} layers, hidden size {hf.hidden_size}, {head}"
    yield "vocabulary", str(hf.vocab_size)


def _step(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "step", str(manifest.step)
    yield "layout", ", ".join(f"{name} {value}" for name, value in manifest.layout.items() if value is not None)
    yield "versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())
    yield "weights", f"{manifest.model_dtype}, rounded from the masters"
    kinds: dict[str, dict[str, Spec]] = {}
    for key, entry in manifest.tensors.items():
        spec = Spec(tuple(entry["shape"]), getattr(torch, entry["dtype"]))
        kinds.setdefault(key.partition("/")[0], {})[key] = spec
    for kind, specs in kinds.items():
        yield kind, _sum(specs)
    for part, entries in manifest.state.items():
        for name, value in entries.items():
            text = json.dumps(value)
            yield f"{part}.{name}", text if len(text) <= WIDTH else f"{text[:WIDTH]}..."


def _megatron(directory: Path, trust_pickle: bool) -> Iterator[tuple[str, str]]:
    if not trust_pickle:
        yield "tensors", "not looked at: .metadata is a pickle, which is read only with --trust-pickle"
        return
    source = TorchDist(directory, trust_pickle)
    stacked = any(region.layer is not None for region in source.regions.values())
    yield "layers", "stacked" if stacked else "each with keys of its own"
    yield from _tensors(source.tensors)
    yield "others", f"{_sum(source.others)}, of the optimizer and the like"


def _tensors(specs: Mapping[str, Spec]) -> Iterator[tuple[str, str]]:
    yield "tensors", _sum(specs)


def _sum(specs: Mapping[str, Spec]) -> str:
    """Such as "47 tensors, 1.2 GiB, bfloat16"."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    return ", ".join([f"{len(specs)} tensors", size_text(sum(spec.nbytes for spec in specs.values())), *dtypes])


def _files(directory: Path) -> str:
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    return f"{len(sizes)}, {size_text(sum(sizes))}"
