"""The passes joined into differentiable functions of the hidden states and the LM head's weight."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autograd import Passes
from .projection import ProjectionGradient, chunks, gather_sequence, sum_over_shards
from .settings import PPOSettings
from .tokens import SUMS, MergedStats, PPOInputs, Tokens, compute_dtype


class Head(NamedTuple):
    """How the hidden states become logits."""

    passes: Passes
    chunk_size: int
    sequence_parallel: bool
    grad_enabled: bool
    """The caller's mode; a function's own forward pass always sees it off."""

    def pick(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(rows, hidden): the active rows' numbers [N] and hidden states [N, H]. Waits for the device."""
        if self.sequence_parallel:
            hidden = gather_sequence(hidden, self.passes.softmax.shard.group)
        rows = tokens.active().nonzero().squeeze(-1)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return rows, flat if len(rows) == len(flat) else flat[rows]

    def spread_gradient(self, grad: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of the hidden states `shape` from that of their active rows [N, H]; 0 elsewhere."""
        group = self.passes.softmax.shard.group
        first = shape[0] * group.size() if self.sequence_parallel else shape[0]
        whole = grad.new_zeros(first, *shape[1:])
        whole.view(-1, shape[-1]).index_copy_(0, rows, grad)
        return sum_over_shards(whole, group, self.sequence_parallel)


class LinearPPOLossFunction(torch.autograd.Function):
    """(loss, log_probs [T], entropy [T], metric sums); the loss is differentiable in hidden states and weight.

    The gradients are made in the forward pass, while a chunk's logits are there: the loss is a sum over tokens whose
    weights are known, so only the factor of the upstream gradient is left for the backward pass.
    """

    @staticmethod
    def forward(ctx, hidden, weight, tokens: Tokens, head: Head, inputs: PPOInputs, settings: PPOSettings):
        rows, picked = head.pick(hidden, tokens)
        tokens_of, inputs_of = _entries(tokens, rows), PPOInputs(*(_entry(x, rows) for x in inputs))
        wanted = [needed and head.grad_enabled for needed in ctx.needs_input_grad[:2]]
        gradient = ProjectionGradient(picked, weight, *wanted)
        dtype = inputs.advantages.dtype
        log_probs = torch.zeros(tokens.labels.numel(), dtype=dtype, device=hidden.device)
        entropy = torch.zeros_like(log_probs)
        sums = torch.zeros(len(SUMS), dtype=dtype, device=hidden.device)
        for part, logits in chunks(picked, weight, head.chunk_size):
            own, own_inputs = _entries(tokens_of, part), PPOInputs(*(_entry(x, part) for x in inputs_of))
            found = head.passes.ppo_rows(logits, own, own_inputs, settings)
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
    def backward(ctx, upstream, *_):
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
    def forward(ctx, hidden, weight, tokens: Tokens, head: Head, entropy_requires_grad: bool, collision: bool):
        rows, picked = head.pick(hidden, tokens)
        tokens_of = _entries(tokens, rows)
        dtype = compute_dtype(hidden.dtype)
        merged = MergedStats(*torch.empty(len(MergedStats._fields), len(rows), dtype=dtype, device=hidden.device))
        for part, logits in chunks(picked, weight, head.chunk_size):
            found = head.passes.token_stats(logits, _entries(tokens_of, part), collision)
            for total, own in zip(merged, found, strict=True):
                total[part] = own
        ctx.save_for_backward(picked, weight, rows, *merged[:5])
        ctx.tokens_of, ctx.head, ctx.hidden_shape = tokens_of, head, hidden.shape
        wanted = (merged.log_probs, merged.entropy, merged.collision if collision else None)
        zeros = torch.zeros(tokens.labels.numel(), dtype=dtype, device=hidden.device)
        log_probs, entropy, collision = (None if x is None else zeros.index_copy(0, rows, x) for x in wanted)
        constants = [x for x in (None if entropy_requires_grad else entropy, collision) if x is not None]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return log_probs, entropy, collision

    @staticmethod
    @once_differentiable
    def backward(ctx, log_prob_grad, entropy_grad, _):
        picked, weight, rows, *merged = ctx.saved_tensors
        if log_prob_grad is None and entropy_grad is None:
            return None, None, None, None, None, None
        merged = MergedStats(*merged, collision=None)
        g = torch.zeros_like(merged.log_probs) if log_prob_grad is None else log_prob_grad[rows]
        h = _entry(entropy_grad, rows)
        gradient = ProjectionGradient(picked, weight, *ctx.needs_input_grad[:2])
        for part, logits in chunks(picked, weight, ctx.head.chunk_size):
            own = MergedStats(*(_entry(x, part) for x in merged))
            tokens = _entries(ctx.tokens_of, part)
            gradient.add(part, ctx.head.passes.gradient(logits, tokens, own, g[part], _entry(h, part), upstream=None))
        hidden_grad = weight_grad = None
        if gradient.hidden is not None:
            hidden_grad = ctx.head.spread_gradient(gradient.hidden, rows, ctx.hidden_shape)
        if gradient.weight is not None:
            weight_grad = gradient.weight.to(weight.dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _entry(vector: Tensor | None, index) -> Tensor | None:
    return None if vector is None else vector[index]


def _entries(tokens: Tokens, index) -> Tokens:
    return Tokens(tokens.labels[index], tokens.ignore_index, _entry(tokens.loss_weights, index))
