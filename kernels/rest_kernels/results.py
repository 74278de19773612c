"""What the public functions return."""

from typing import NamedTuple

import torch
from torch import Tensor

from .tokens import SUMS


class LogProbEntropy(NamedTuple):
    """Per-token results of the labels' shape, float32 (float64 for float64 logits). 0 where the label is ignored."""

    log_probs: Tensor
    entropy: Tensor
    collision: Tensor | None


class PPOLoss(NamedTuple):
    """The loss (a scalar with a gradient), per-token log_probs and entropy (without one), and metric sums."""

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor
    metrics: dict[str, Tensor]


def per_token(shape: torch.Size, log_probs: Tensor, entropy: Tensor, collision: Tensor | None) -> LogProbEntropy:
    """The vectors [T] in the labels' shape."""
    shaped = None if collision is None else collision.view(shape)
    return LogProbEntropy(log_probs.view(shape), entropy.view(shape), shaped)


def named_sums(sums: Tensor) -> dict[str, Tensor]:
    """The metric sums by name, each 0-dim on the device; the loss is left out."""
    return {name: value for name, value in zip(SUMS, sums.unbind(), strict=True) if name != "loss"}
