"""Log-probabilities, entropy and the clipped policy loss straight from vocabulary-parallel logits.

Depends on torch and Triton alone, so any trainer can use it. `reference` is the specification: plain torch on the full
vocabulary. The rest computes the same numbers on logits cut along the vocabulary over a tensor-parallel group, without
a full-precision copy of the logits: Triton kernels on a GPU, chunked torch elsewhere.
"""

from . import reference
from .linear import linear_logprob_entropy, linear_ppo_loss
from .results import LogProbEntropy, PPOLoss
from .tokens import MergedStats
from .torch_backend.merge import merge_softmax_stats
from .vocab_parallel import vocab_parallel_logprob_entropy, vocab_parallel_ppo_loss

__all__ = [
    "LogProbEntropy",
    "MergedStats",
    "PPOLoss",
    "linear_logprob_entropy",
    "linear_ppo_loss",
    "merge_softmax_stats",
    "reference",
    "vocab_parallel_logprob_entropy",
    "vocab_parallel_ppo_loss",
]
