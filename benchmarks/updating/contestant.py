"""What every arm has in common: the settings of the step, and how it is asked for one."""

from typing import Any, NamedTuple, Protocol

from torch import nn

CLIP_RATIO = 0.2
CLIP_GRAD = 1.0
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
# So small that float32 weights do not move: every round is the same step, and its gradient can be compared.
LEARNING_RATE = 1e-12


class Done(NamedTuple):
    """An optimizer step's loss, and the norm of its gradient before that is clipped."""

    loss: float
    grad_norm: float


class Contestant(Protocol):
    """One step, as often as it is asked for. embedding: looks up the ids of the tokens that are computed."""

    embedding: nn.Module

    def log_probs(self) -> Any:
        """Those of the sampled tokens before the update, as `update` wants them."""

    def update(self, old: Any) -> Done:
        """One optimizer step; old: what `log_probs` gave, None for the log-probs of its own forward passes."""
