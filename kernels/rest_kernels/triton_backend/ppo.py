"""Triton: from the gathered statistics to the weighted, clipped policy loss and its derivative, in one kernel.

In plain torch this would be some eighty launches on vectors, as long as the whole pass over a small shard's logits.
"""

import triton
import triton.language as tl

from ..tokens import SUMS
from .elementary import LOG_RATIO_BOUND, bounded_log_ratio, k3
from .merge import merge_rows
from .rows import is_active

NUM_SUMS = tl.constexpr(len(SUMS))


@triton.jit
def _clipped(ratio, raw_delta, advantage, clip_ratio_low, clip_ratio_high, clip_ratio_dual):
    """(l, dl/dlog p, held): l = -A clamp(r) with one-sided bounds, see `torch_backend.ppo.ppo_rows`.

    Its derivative -A r vanishes where a bound holds the ratio, and where the log-ratio itself is bounded.
    """
    negative = advantage < 0
    lower = tl.where(negative, 1.0 - clip_ratio_low, 0.0)
    upper = tl.where(negative, clip_ratio_dual, 1.0 + clip_ratio_high)
    held = (ratio < lower) | (ratio > upper)
    bounded = tl.where(ratio < lower, lower, tl.where(ratio > upper, upper, ratio))
    grad = tl.where(held | (tl.abs(raw_delta) > LOG_RATIO_BOUND), 0.0, -advantage * ratio)
    return -advantage * bounded, grad, held


@triton.jit
def _store_sum(out, values, active):
    tl.store(out, tl.sum(tl.where(active, values, 0.0), axis=0))


@triton.jit(
    do_not_specialize=["num_tokens", "num_shards", "vocab_size", "ignore_index"],
    # Vectors cut out of others lie anywhere; their alignment is not worth a compilation.
    do_not_specialize_on_alignment=[
        "stats",
        "labels",
        "loss_weights",
        "old_log_probs",
        "advantages",
        "ref_log_probs",
        "row_max",
        "exp_sum",
        "rest",
        "log_probs",
        "entropy",
        "log_prob_grad",
        "entropy_grad",
        "sums",
    ],
)
def ppo_rows_kernel(
    stats,
    labels,
    loss_weights,
    old_log_probs,
    advantages,
    ref_log_probs,
    row_max,
    exp_sum,
    rest,
    log_probs,
    entropy,
    log_prob_grad,
    entropy_grad,
    sums,
    num_tokens,
    num_shards,
    vocab_size,
    ignore_index,
    inverse_temperature,
    clip_ratio_low,
    clip_ratio_high,
    clip_ratio_dual,
    kl_coef,
    entropy_coef,
    HAS_KL: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Per token: softmax, g = w (dl/dlog p + kl_coef dKL/dlog p), h = -w entropy_coef; 0 where not active.

    sums [programs, 7] are this program's totals of `tokens.SUMS`, in that order.
    """
    program = tl.program_id(0)
    row = program * BLOCK + tl.arange(0, BLOCK)
    mask = row < num_tokens
    active = is_active(labels, loss_weights, row, mask, ignore_index, True)
    merged = merge_rows(stats, labels, row, active, num_tokens, num_shards, vocab_size, inverse_temperature)
    log_prob, row_entropy = merged[3], merged[4]
    weight = tl.load(loss_weights + row, mask=active, other=0.0)
    advantage = tl.load(advantages + row, mask=active, other=0.0)
    raw_delta = log_prob - tl.load(old_log_probs + row, mask=active, other=0.0)
    delta = bounded_log_ratio(raw_delta)
    ratio = tl.exp(delta)
    loss, grad, held = _clipped(ratio, raw_delta, advantage, clip_ratio_low, clip_ratio_high, clip_ratio_dual)
    if HAS_KL:
        raw_gap = tl.load(ref_log_probs + row, mask=active, other=0.0) - log_prob
        gap = bounded_log_ratio(raw_gap)
        kl = k3(gap)
        loss += kl_coef * kl
        grad -= tl.where(tl.abs(raw_gap) > LOG_RATIO_BOUND, 0.0, kl_coef * (gap + kl))
    if HAS_ENTROPY:
        loss -= entropy_coef * row_entropy
        tl.store(entropy_grad + row, -weight * entropy_coef, mask=mask)
    tl.store(row_max + row, merged[0], mask=mask)
    tl.store(exp_sum + row, merged[1], mask=mask)
    tl.store(rest + row, merged[2], mask=mask)
    tl.store(log_probs + row, log_prob, mask=mask)
    tl.store(entropy + row, row_entropy, mask=mask)
    tl.store(log_prob_grad + row, tl.where(active, weight * grad, 0.0), mask=mask)
    clipped = active & held & (advantage != 0)
    out = sums + program * NUM_SUMS
    _store_sum(out, weight * loss, active)
    _store_sum(out + 1, tl.full(row.shape, 1.0, tl.float32), active)
    _store_sum(out + 2, clipped.to(tl.float32), active)
    _store_sum(out + 3, (clipped & (advantage < 0)).to(tl.float32), active)
    _store_sum(out + 4, k3(delta), active)
    _store_sum(out + 5, ratio, active)
    _store_sum(out + 6, row_entropy, active)
