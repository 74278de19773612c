"""Log-probabilities, entropy and the clipped policy loss straight from vocabulary-parallel logits.

Depends on torch alone, so any trainer can use it. `reference` is the specification: plain torch on the full
vocabulary. The rest computes the same numbers on logits cut along the vocabulary over a tensor-parallel group,
without a full-precision copy of the logits.
"""

from . import reference
from .stats import MergedStats, merge_softmax_stats, shard_softmax_stats
from .vocab_parallel import LogProbEntropy, PPOLoss, vocab_parallel_logprob_entropy, vocab_parallel_ppo_loss

__all__ = [
    "LogProbEntropy",
    "MergedStats",
    "PPOLoss",
    "merge_softmax_stats",
    "reference",
    "shard_softmax_stats",
    "vocab_parallel_logprob_entropy",
    "vocab_parallel_ppo_loss",
]
