"""The `train` command."""

from rest_megatron.train import main

__all__ = ["main"]
