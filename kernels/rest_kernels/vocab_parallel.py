"""Log-probabilities, entropy and the clipped policy loss on vocabulary-parallel logits.

Each rank of a tensor-parallel group holds some columns of the logits. It reduces its rows to five numbers per token,
the ranks exchange those once, and every rank then knows the whole softmax. The results are replicated: bitwise equal
on all ranks. The gradient on each rank is that of the loss with respect to its own columns; it needs no reduction
and no factor of the group's size.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .checks import check_labels, check_logits, check_ppo_settings, check_token_vectors
from .gradient import shard_logits_gradient
from .ppo import clipped_surrogate
from .reference import kl_to_reference
from .shard import VocabShard, vocab_shard
from .stats import MergedStats, merge_softmax_stats, shard_softmax_stats


class LogProbEntropy(NamedTuple):
    """Per-token results of the labels' shape, float32 (float64 for float64 logits). 0 where the label is ignored."""

    log_probs: Tensor
    entropy: Tensor
    collision: Tensor | None


class PPOLoss(NamedTuple):
    """The loss (a scalar with a gradient), per-token log_probs and entropy (without one), and metric sums."""

    loss: Tensor
    log_probs: Tensor
    entropy: Tensor
    metrics: dict[str, Tensor]


def vocab_parallel_logprob_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    entropy_requires_grad: bool = False,
    return_collision: bool = False,
) -> LogProbEntropy:
    """log p_y, entropy H and collision sum p^2 of softmax(logits / temperature), for every token.

    logits: [..., V_local] bfloat16, float16, float32 or float64, last stride 1; this rank's columns, which follow
        those of the earlier ranks of `tp_group`. Sums are float32 (float64 for float64). Columns may be -inf.
        A leading shape whose strides cannot be flattened is read by index, without a copy of the logits.
    labels: [...] int64, ids of the whole vocabulary, equal on all ranks. `ignore_index` marks rows that are not
        read: log-prob, entropy and collision 0, gradient exactly 0.
    tp_group: the ranks that share the vocabulary; None: this rank has all of it. Every rank must call, even with zero
        tokens.
    vocab_size: ids at or beyond it are padding and hold no probability; None: no padding.
    entropy_requires_grad: make entropy differentiable too; log_probs always is. Double backward is not supported.
    return_collision: fill `collision` (never differentiable).

    Logits and labels are never changed. The backward pass allocates the gradient, in the logits' dtype, and a few MiB.
    Log-prob and gradient keep their relative precision when p_y nears 1.
    Raises TypeError for a dtype; ValueError for a shape, stride, temperature, vocab_size or label out of range.
    """
    check_logits(logits, labels, temperature)
    rows = (labels != ignore_index).reshape(-1).nonzero().squeeze(-1)
    shard = vocab_shard(logits.shape[-1], vocab_size, tp_group, logits.device)
    values = _TokenStatistics.apply(logits, _pick(labels, rows), rows, shard, temperature, entropy_requires_grad)
    log_probs, entropy, collision = (_spread(value, rows, labels.shape) for value in values)
    return LogProbEntropy(log_probs, entropy, collision if return_collision else None)


def vocab_parallel_ppo_loss(
    logits: Tensor,
    labels: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
    ref_log_probs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_index: int = -100,
) -> PPOLoss:
    """loss = sum_t loss_weights_t (l_t + kl_coef KL_t - entropy_coef H_t), see `reference.ppo_loss`.

    `loss_weights` already hold mask, token weight and normaliser, so the sum needs no division. Rows with weight 0
    (or label `ignore_index`) are not read: their log_probs and entropy are 0, their gradient is exactly 0.
    old_log_probs, advantages, loss_weights, ref_log_probs: floating point of the labels' shape, equal on all ranks
    of `tp_group`, constants for autograd. The other arguments are those of `vocab_parallel_logprob_entropy`.

    metrics: sums over the tokens that were read, 0-dim on the logits' device, in the loss's dtype, to be added over
    micro-batches and data-parallel ranks and divided by num_tokens:
        num_tokens; ratio, entropy; clipped: tokens whose ratio a clip holds, so that they have no policy gradient;
        clipped_low: those of them with A < 0 (held at 1 - clip_ratio_low or at the dual clip);
        approx_kl: k3 estimate of KL(old || policy), e^d - 1 - d with d = log_probs - old_log_probs.

    Raises TypeError for a dtype; ValueError for a shape, stride or value out of range.
    """
    check_logits(logits, labels, temperature)
    check_token_vectors(
        labels,
        old_log_probs=old_log_probs,
        advantages=advantages,
        loss_weights=loss_weights,
        ref_log_probs=ref_log_probs,
    )
    check_ppo_settings(clip_ratio_low, clip_ratio_high, clip_ratio_dual, kl_coef, entropy_coef, ref_log_probs)
    rows = ((loss_weights != 0) & (labels != ignore_index)).reshape(-1).nonzero().squeeze(-1)
    shard = vocab_shard(logits.shape[-1], vocab_size, tp_group, logits.device)
    log_probs, entropy, _ = _TokenStatistics.apply(
        logits, _pick(labels, rows), rows, shard, temperature, entropy_coef != 0
    )
    dtype = log_probs.dtype
    token_loss, metrics = clipped_surrogate(
        log_probs,
        _pick(old_log_probs, rows, dtype),
        _pick(advantages, rows, dtype),
        clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high,
        clip_ratio_dual=clip_ratio_dual,
    )
    if kl_coef != 0:
        token_loss = token_loss + kl_coef * kl_to_reference(log_probs, _pick(ref_log_probs, rows, dtype))
    if entropy_coef != 0:
        token_loss = token_loss - entropy_coef * entropy
    loss = (_pick(loss_weights, rows, dtype) * token_loss).sum()
    log_probs, entropy = log_probs.detach(), entropy.detach()
    metrics |= {"num_tokens": torch.full_like(loss.detach(), len(rows)), "entropy": entropy.sum()}
    return PPOLoss(loss, _spread(log_probs, rows, labels.shape), _spread(entropy, rows, labels.shape), metrics)


class _TokenStatistics(torch.autograd.Function):
    """(log_probs, entropy, collision), each [N], of the listed rows of the logits."""

    @staticmethod
    def forward(ctx, logits, labels, rows, shard: VocabShard, temperature: float, entropy_requires_grad: bool):
        check_labels(labels, shard.vocab_size)
        local_labels = labels - shard.start
        stats = shard_softmax_stats(logits[..., : shard.num_columns], rows, local_labels, temperature)
        merged = merge_softmax_stats(shard.gather(stats), temperature)
        ctx.save_for_backward(logits, rows, local_labels, *merged)
        ctx.num_columns, ctx.temperature = shard.num_columns, temperature
        constants = (merged.collision,) if entropy_requires_grad else (merged.entropy, merged.collision)
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return merged.log_probs, merged.entropy, merged.collision

    @staticmethod
    @once_differentiable
    def backward(ctx, log_prob_grad, entropy_grad, _):
        logits, rows, local_labels, *merged = ctx.saved_tensors
        merged = MergedStats(*merged)
        if log_prob_grad is None:
            log_prob_grad = torch.zeros_like(merged.log_probs)
        grad = shard_logits_gradient(
            logits, ctx.num_columns, rows, local_labels, merged, log_prob_grad, entropy_grad, ctx.temperature
        )
        return grad, None, None, None, None, None


def _pick(vector: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The listed entries [N] of a per-token tensor of any shape, as constants for autograd."""
    return vector.detach().reshape(-1)[rows].to(dtype or vector.dtype)


def _spread(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Put `values` [N] at their row numbers in a tensor of `shape`; 0 elsewhere."""
    if len(rows) == shape.numel():
        return values.view(shape)
    return values.new_zeros(shape.numel()).index_copy(0, rows, values).view(shape)
