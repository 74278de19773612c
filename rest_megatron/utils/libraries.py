"""Packages that are used when they are there, and are never needed."""

from importlib.util import find_spec


def has_apex() -> bool:
    """Whether NVIDIA Apex is installed with its compiled CUDA kernels: without them its fused AdamW cannot run."""
    return find_spec("apex") is not None and find_spec("amp_C") is not None


def has_transformer_engine() -> bool:
    """Whether NVIDIA Transformer Engine is installed."""
    return find_spec("transformer_engine") is not None
