"""Directories of safetensors files, compared bit for bit."""

import torch
from safetensors.torch import load_file


def read(directory) -> dict:
    """All tensors of a directory's safetensors; no name twice."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        part = load_file(path)
        assert not tensors.keys() & part.keys()
        tensors.update(part)
    return tensors


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )
