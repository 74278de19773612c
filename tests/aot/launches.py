"""Launches of the four kernels, on tensors of the CPU whose contents do not matter."""

from dataclasses import dataclass

import torch

from rest_kernels.settings import PPOSettings
from rest_kernels.shard import VocabShard
from rest_kernels.tokens import MergedStats, PPOInputs, Softmax, Tokens
from rest_kernels.triton_backend import launch

# A vocabulary of 151936 ids on 1, 2, 4 and 8 ranks, and 8 shards padded to a multiple of 128.
SHARDS = (151936, 75968, 37984, 18992, 19072)


@dataclass(frozen=True)
class Shape:
    """Logits [rows, columns] of `dtype`, the last `padding` columns outside the vocabulary.

    `two_strides`: they are [4, rows / 4, columns], transposed from [rows / 4, 4, columns].
    """

    dtype: torch.dtype
    columns: int
    rows: int = 16
    padding: int = 0
    two_strides: bool = False

    def logits(self) -> torch.Tensor:
        """Uninitialised."""
        if self.two_strides:
            return torch.empty(self.rows // 4, 4, self.columns, dtype=self.dtype).transpose(0, 1)
        return torch.empty(self.rows, self.columns, dtype=self.dtype)

    def softmax(self) -> Softmax:
        """Over a vocabulary that is one shard."""
        vocab_size = self.columns - self.padding
        return Softmax(VocabShard(0, vocab_size, vocab_size, None), temperature=0.7)

    def tokens(self, weights: bool) -> Tokens:
        """Labels, with loss weights or without."""
        labels = torch.zeros(self.rows, dtype=torch.int64)
        return Tokens(labels, -100, torch.zeros(self.rows) if weights else None)


def softmax_stats(shape: Shape, *, weights: bool, collision: bool):
    """The forward pass."""
    return launch.softmax_stats(shape.logits(), shape.tokens(weights), shape.softmax(), collision)


def merge_stats(shape: Shape, *, shards: int):
    """The merge of `shards` shards."""
    stats = torch.zeros(shards, shape.rows, launch.NUM_STATS)
    return launch.merge_stats(stats, shape.tokens(weights=False), shape.softmax())


def ppo_rows(shape: Shape, *, kl: bool, entropy: bool):
    """The merge of two shards and the policy loss."""
    stats, vector = torch.zeros(2, shape.rows, launch.NUM_STATS), torch.zeros(shape.rows)
    settings = PPOSettings(0.2, 0.2, None, kl_coef=0.1 if kl else 0.0, entropy_coef=0.1 if entropy else 0.0)
    inputs = PPOInputs(vector, vector, vector if kl else None)
    return launch.ppo_rows(stats, shape.tokens(weights=True), shape.softmax(), inputs, settings)


def logits_gradient(shape: Shape, *, entropy: bool, upstream: bool):
    """The backward pass."""
    merged = MergedStats(*torch.zeros(len(MergedStats._fields), shape.rows))
    log_prob_grad = torch.zeros(shape.rows)
    entropy_grad = torch.zeros(shape.rows) if entropy else None
    factor = torch.zeros(()) if upstream else None
    return launch.logits_gradient(
        shape.logits(), shape.tokens(False), shape.softmax(), merged, log_prob_grad, entropy_grad, factor, inplace=False
    )
