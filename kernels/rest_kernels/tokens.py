"""What every pass over the logits gets: which rows count, how their softmax is cut, and what came of it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .shard import VocabShard

Index = slice | Tensor
# Columns of a shard's statistics: (m, s, u, q, t), see `reference.shard_stats`.
NUM_STATS = 5
# What `PPORows.sums` holds, in this order.
SUMS = ("loss", "num_tokens", "clipped", "clipped_low", "approx_kl", "ratio", "entropy")


class Tokens(NamedTuple):
    """T rows, counted over the flattened leading shape. Rows that are not active are not read and give exactly 0."""

    labels: Tensor
    """int64 [T], ids of the whole vocabulary."""
    ignore_index: int
    loss_weights: Tensor | None
    """[T] in the compute dtype, or None: every labelled row counts."""

    def active(self) -> Tensor:
        """bool [T]: rows with a label and a weight other than 0."""
        labelled = self.labels != self.ignore_index
        return labelled if self.loss_weights is None else labelled & (self.loss_weights != 0)

    def at(self, index: Index) -> "Tokens":
        """These rows alone."""
        return Tokens(self.labels[index], self.ignore_index, entries(self.loss_weights, index))


@dataclass(frozen=True)
class Softmax:
    """softmax(logits / temperature) over a vocabulary of which this rank holds `shard`."""

    shard: VocabShard
    temperature: float


class MergedStats(NamedTuple):
    """The softmax of whole rows, each tensor [T]. p_v = exp((x_v - row_max) / tau) / exp_sum; 1 - p_y = rest / exp_sum.

    log_probs, entropy and collision are 0 in rows that are not active; the others are undefined there.
    """

    row_max: Tensor
    exp_sum: Tensor
    rest: Tensor
    log_probs: Tensor
    entropy: Tensor
    collision: Tensor | None
    """None where nothing needs it."""

    def at(self, index: Index) -> "MergedStats":
        """These rows alone."""
        row_max, exp_sum, rest, log_probs, entropy = (vector[index] for vector in self[:5])
        return MergedStats(row_max, exp_sum, rest, log_probs, entropy, entries(self.collision, index))


class PPOInputs(NamedTuple):
    """Constants of the policy loss, each [T] in the compute dtype."""

    old_log_probs: Tensor
    advantages: Tensor
    ref_log_probs: Tensor | None

    def at(self, index: Index) -> "PPOInputs":
        """These rows alone."""
        return PPOInputs(self.old_log_probs[index], self.advantages[index], entries(self.ref_log_probs, index))


class PPORows(NamedTuple):
    """The policy loss and what its gradient needs. g = dL/dlog p_y and h = dL/dH are [T], 0 where not active."""

    merged: MergedStats
    log_prob_grad: Tensor
    entropy_grad: Tensor | None
    sums: Tensor
    """[len(SUMS)] over the active tokens."""


def entries(vector: Tensor | None, index: Index) -> Tensor | None:
    """The entries of a vector that may be missing."""
    return None if vector is None else vector[index]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are made in: float64 for float64 logits, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
