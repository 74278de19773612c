"""The passes as Triton kernels; see `backend.Backend` for their contract.

stats     one read of the logits
merge     statistics of all shards -> softmax of whole rows
ppo       the same, with the policy loss and its derivative
gradient  one read and one write of the logits
"""

from .launch import is_interpreted, logits_gradient, merge_stats, ppo_rows, softmax_stats

__all__ = ["is_interpreted", "logits_gradient", "merge_stats", "ppo_rows", "softmax_stats"]
