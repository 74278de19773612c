"""The passes in torch, a few rows at a time; see `backend.Backend` for their contract.

Takes any device and float64. On a CPU, large logits are read by code that `torch.compile` makes (see `compiled`).
"""

from .gradient import logits_gradient
from .merge import merge_stats
from .ppo import ppo_rows
from .stats import softmax_stats

__all__ = ["logits_gradient", "merge_stats", "ppo_rows", "softmax_stats"]
