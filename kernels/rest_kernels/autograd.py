"""The passes joined into differentiable functions of the logits.

What a function returns is a copy of what it keeps for the backward pass, so that the caller may change it in place.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backend import Backend
from .settings import PPOSettings
from .tokens import MergedStats, PPOInputs, PPORows, Softmax, Tokens


@dataclass(frozen=True)
class Passes:
    """A backend's passes over logits of one shard."""

    backend: Backend
    softmax: Softmax
    inplace_backward: bool

    def stats(self, logits: Tensor, tokens: Tokens, collision: bool) -> Tensor:
        """Statistics of all shards, [shards, T, 5]: one read of the logits, one collective."""
        return self.softmax.shard.gather(self.backend.softmax_stats(logits, tokens, self.softmax, collision))

    def token_stats(self, logits: Tensor, tokens: Tokens, collision: bool) -> MergedStats:
        """The softmax of each row."""
        return self.backend.merge_stats(self.stats(logits, tokens, collision), tokens, self.softmax)

    def ppo_rows(self, logits: Tensor, tokens: Tokens, inputs: PPOInputs, settings: PPOSettings) -> PPORows:
        """The policy loss of each row and its derivative."""
        stats = self.stats(logits, tokens, collision=False)
        return self.backend.ppo_rows(stats, tokens, self.softmax, inputs, settings)

    def gradient(
        self,
        logits: Tensor,
        tokens: Tokens,
        merged: MergedStats,
        log_prob_grad: Tensor,
        entropy_grad: Tensor | None,
        upstream: Tensor | None,
    ) -> Tensor:
        """The logits' gradient, over them where `inplace_backward` says so."""
        grad = self.backend.logits_gradient(
            logits, tokens, self.softmax, merged, log_prob_grad, entropy_grad, upstream, self.inplace_backward
        )
        if self.inplace_backward:
            torch.autograd.graph.increment_version(logits)
        return grad


class TokenStatsFunction(torch.autograd.Function):
    """(log_probs, entropy, collision), each [T], of the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tokens, passes: Passes, entropy_requires_grad: bool, collision: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """collision: whether to return it; None instead where not."""
        merged = passes.token_stats(logits, tokens, collision)
        _remember(ctx, logits, tokens, passes, merged)
        log_probs, entropy = merged.log_probs.clone(), merged.entropy.clone()
        squares = merged.collision.clone() if collision and merged.collision is not None else None
        constants = [x for x in (None if entropy_requires_grad else entropy, squares) if x is not None]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return log_probs, entropy, squares

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None, _: None
    ) -> tuple[Tensor, None, None, None, None]:
        """The gradient of the logits."""
        logits, merged = _recall(ctx)
        log_prob_grad = torch.zeros_like(merged.log_probs) if log_prob_grad is None else log_prob_grad.contiguous()
        entropy_grad = None if entropy_grad is None else entropy_grad.contiguous()
        grad = ctx.passes.gradient(logits, ctx.tokens, merged, log_prob_grad, entropy_grad, upstream=None)
        return grad, None, None, None, None


class PPOLossFunction(torch.autograd.Function):
    """(loss, log_probs [T], entropy [T], metric sums) of the logits; the loss alone is differentiable."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tokens, passes: Passes, inputs: PPOInputs, settings: PPOSettings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, and what of its derivative the backward pass needs."""
        rows = passes.ppo_rows(logits, tokens, inputs, settings)
        _remember(ctx, logits, tokens, passes, rows.merged)
        ctx.log_prob_grad, ctx.entropy_grad = rows.log_prob_grad, rows.entropy_grad
        log_probs, entropy = rows.merged.log_probs.clone(), rows.merged.entropy.clone()
        ctx.mark_non_differentiable(log_probs, entropy, rows.sums)
        ctx.set_materialize_grads(False)
        return rows.sums[0].clone(), log_probs, entropy, rows.sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None, None]:
        """The gradient of the logits."""
        if upstream is None:
            return None, None, None, None, None
        logits, merged = _recall(ctx)
        grad = ctx.passes.gradient(logits, ctx.tokens, merged, ctx.log_prob_grad, ctx.entropy_grad, upstream)
        return grad, None, None, None, None


def _remember(ctx: Any, logits: Tensor, tokens: Tokens, passes: Passes, merged: MergedStats) -> None:
    ctx.tokens, ctx.passes, ctx.overwritten = tokens, passes, False
    ctx.save_for_backward(logits, *merged[:5])


def _recall(ctx: Any) -> tuple[Tensor, MergedStats]:
    """Logits and merged statistics of the forward pass. Raises RuntimeError once their gradient lies over them."""
    if ctx.overwritten:
        raise RuntimeError(
            "this is a second backward pass, but inplace_backward=True wrote the gradient over the logits in the "
            "first; they are gone. Pass inplace_backward=False to go through the graph more than once."
        )
    ctx.overwritten = ctx.passes.inplace_backward
    logits, row_max, exp_sum, rest, log_probs, entropy = ctx.saved_tensors
    return logits, MergedStats(row_max, exp_sum, rest, log_probs, entropy, collision=None)
