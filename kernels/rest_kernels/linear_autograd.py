"""The passes joined into differentiable functions of the hidden states and the LM head's weight."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autograd import Passes
from .projection import ProjectionGradient, chunks, gather_sequence, sum_over_shards
from .settings import PPOSettings
from .tokens import SUMS, MergedStats, PPOInputs, Tokens, compute_dtype, entries


class Head(NamedTuple):
    """How the hidden states become logits."""

    passes: Passes
    chunk_size: int
    sequence_parallel: bool
    grad_enabled: bool
    """The caller's mode; a function's own forward pass always sees it off."""

    def pick(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(rows, hidden): the active rows' numbers [N] and hidden states [N, H]. Waits for the device."""
        group = self.passes.softmax.shard.group
        if self.sequence_parallel and group is not None:
            hidden = gather_sequence(hidden, group)
        rows = tokens.active().nonzero().squeeze(-1)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return rows, flat if len(rows) == len(flat) else flat[rows]

    def spread_gradient(self, grad: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of the hidden states `shape` from that of their active rows [N, H]; 0 elsewhere."""
        group = self.passes.softmax.shard.group
        first = shape[0] * group.size() if self.sequence_parallel and group is not None else shape[0]
        whole = grad.new_zeros(first, *shape[1:])
        whole.view(-1, shape[-1]).index_copy_(0, rows, grad)
        return sum_over_shards(whole, group, self.sequence_parallel)


class LinearPPOLossFunction(torch.autograd.Function):
    """(loss, log_probs [T], entropy [T], metric sums); the loss is differentiable in hidden states and weight.

    The gradients are made in the forward pass, while a chunk's logits are there: the loss is a sum over tokens whose
    weights are known, so only the factor of the upstream gradient is left for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tokens,
        head: Head,
        inputs: PPOInputs,
        settings: PPOSettings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss, and the gradients that it has with a factor of 1."""
        rows, picked = head.pick(hidden, tokens)
        tokens_of, inputs_of = tokens.at(rows), inputs.at(rows)
        wanted = [needed and head.grad_enabled for needed in ctx.needs_input_grad[:2]]
        gradient = ProjectionGradient(picked, weight, *wanted)
        dtype = inputs.advantages.dtype
        log_probs = torch.zeros(tokens.labels.numel(), dtype=dtype, device=hidden.device)
        entropy = torch.zeros_like(log_probs)
        sums = torch.zeros(len(SUMS), dtype=dtype, device=hidden.device)
        for part, logits in chunks(picked, weight, head.chunk_size):
            own = tokens_of.at(part)
            found = head.passes.ppo_rows(logits, own, inputs_of.at(part), settings)
            sums += found.sums
            log_probs[rows[part]], entropy[rows[part]] = found.merged.log_probs, found.merged.entropy
            if any(wanted):
                grads = found.log_prob_grad, found.entropy_grad
                gradient.add(part, head.passes.gradient(logits, own, found.merged, *grads, upstream=None))
        ctx.head, ctx.hidden_shape, ctx.weight_dtype = head, hidden.shape, weight.dtype
        # Saved as autograd saves tensors, they are freed by the backward pass, not with the loss.
        ctx.save_for_backward(rows, gradient.hidden, gradient.weight)
        ctx.mark_non_differentiable(log_probs, entropy, sums)
        ctx.set_materialize_grads(False)
        return sums[0].clone(), log_probs, entropy, sums

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, upstream: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """The gradients of the hidden states and of the weight."""
        hidden_grad = weight_grad = None
        rows, unit_hidden_grad, unit_weight_grad = ctx.saved_tensors
        if upstream is not None and unit_hidden_grad is not None:
            hidden_grad = ctx.head.spread_gradient(unit_hidden_grad * upstream, rows, ctx.hidden_shape)
        if upstream is not None and unit_weight_grad is not None:
            weight_grad = torch.empty_like(unit_weight_grad, dtype=ctx.weight_dtype)
            torch.mul(unit_weight_grad, upstream, out=weight_grad)
        return hidden_grad, weight_grad, None, None, None, None


class LinearTokenStatsFunction(torch.autograd.Function):
    """(log_probs, entropy, collision), each [T], differentiable in hidden states and weight.

    The upstream gradients are not known in the forward pass, so the backward pass makes the logits again: four matrix
    products in all, where `LinearPPOLossFunction` needs three.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tokens,
        head: Head,
        entropy_requires_grad: bool,
        collision: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """collision: whether to return it; None instead where not."""
        rows, picked = head.pick(hidden, tokens)
        tokens_of = tokens.at(rows)
        dtype = compute_dtype(hidden.dtype)
        merged = MergedStats(*torch.empty(len(MergedStats._fields), len(rows), dtype=dtype, device=hidden.device))
        for part, logits in chunks(picked, weight, head.chunk_size):
            found = head.passes.token_stats(logits, tokens_of.at(part), collision)
            for total, own in zip(merged, found, strict=True):
                if total is not None and own is not None:
                    total[part] = own
        ctx.save_for_backward(picked, weight, rows, *merged[:5])
        ctx.tokens_of, ctx.head, ctx.hidden_shape = tokens_of, head, hidden.shape
        zeros = torch.zeros(tokens.labels.numel(), dtype=dtype, device=hidden.device)
        log_probs, entropy = (zeros.index_copy(0, rows, x) for x in (merged.log_probs, merged.entropy))
        squares = merged.collision if collision else None
        squares = None if squares is None else zeros.index_copy(0, rows, squares)
        constants = [x for x in (None if entropy_requires_grad else entropy, squares) if x is not None]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return log_probs, entropy, squares

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_prob_grad: Tensor | None, entropy_grad: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """The gradients of the hidden states and of the weight."""
        picked, weight, rows, row_max, exp_sum, rest, log_probs, entropy = ctx.saved_tensors
        if log_prob_grad is None and entropy_grad is None:
            return None, None, None, None, None, None
        merged = MergedStats(row_max, exp_sum, rest, log_probs, entropy, collision=None)
        g = torch.zeros_like(merged.log_probs) if log_prob_grad is None else log_prob_grad[rows]
        h = entries(entropy_grad, rows)
        gradient = ProjectionGradient(picked, weight, *ctx.needs_input_grad[:2])
        for part, logits in chunks(picked, weight, ctx.head.chunk_size):
            tokens, grads = ctx.tokens_of.at(part), (g[part], entries(h, part))
            gradient.add(part, ctx.head.passes.gradient(logits, tokens, merged.at(part), *grads, upstream=None))
        hidden_grad = weight_grad = None
        if gradient.hidden is not None:
            hidden_grad = ctx.head.spread_gradient(gradient.hidden, rows, ctx.hidden_shape)
        if gradient.weight is not None:
            weight_grad = gradient.weight.to(weight.dtype)
        return hidden_grad, weight_grad, None, None, None, None
