"""Triton: the shards' statistics of each token merged into the softmax of its whole row."""

import triton
import triton.language as tl

from .elementary import EXP_FLOOR, bounded_exp, log1p, times_exp
from .rows import LOWEST, NUM_STATS, is_active


@triton.jit
def merge_rows(stats, labels, row, active, num_tokens, num_shards, vocab_size, inverse_temperature):
    """(row_max, exp_sum, rest, log_probs, entropy, collision), each [BLOCK]: `reference.merge_shard_stats`.

    With M the largest m_r and t, d_r = (m_r - M) / tau, c_r = e^d_r, z = (t - M) / tau: the rest R = sum c_r s_r,
    S = R + e^z, log S = log1p(R) where the label is the largest; log p = z - log S,
    entropy = log S - (sum c_r (u_r + d_r s_r) + z e^z) / S, collision = (sum c_r^2 q_r + e^2z) / S^2.
    Shards are added in their order, so all ranks get the same bits. The last three are 0 where not `active`. A label
    outside the vocabulary makes S, and so all that follows and the gradient, not-a-number.
    """
    base = stats + row.to(tl.int64) * NUM_STATS
    step = num_tokens.to(tl.int64) * NUM_STATS
    target = tl.full(row.shape, float("-inf"), tl.float32)
    others = tl.full(row.shape, LOWEST, tl.float32)
    for shard in range(num_shards):
        others = tl.maximum(others, tl.load(base + shard * step, mask=active, other=LOWEST))
        found = tl.load(base + shard * step + 4, mask=active, other=0.0)
        target = tl.maximum(target, found, propagate_nan=tl.PropagateNan.ALL)
    top = tl.maximum(others, target)
    rest = tl.zeros(row.shape, tl.float32)
    weighted = tl.zeros(row.shape, tl.float32)
    squares = tl.zeros(row.shape, tl.float32)
    for shard in range(num_shards):
        shard_max = tl.load(base + shard * step, mask=active, other=0.0)
        s = tl.load(base + shard * step + 1, mask=active, other=0.0)
        u = tl.load(base + shard * step + 2, mask=active, other=0.0)
        q = tl.load(base + shard * step + 3, mask=active, other=0.0)
        shift = tl.maximum((shard_max - top) * inverse_temperature, EXP_FLOOR)
        factor = bounded_exp(shift)
        rest += factor * s
        weighted += factor * (u + shift * s)
        squares += factor * factor * q
    exponent = (target - top) * inverse_temperature
    label_exp = bounded_exp(exponent)
    label = tl.load(labels + row, mask=active, other=0)
    exp_sum = tl.where((label >= 0) & (label < vocab_size), rest + label_exp, float("nan"))
    log_sum = tl.where((target >= others) & (exp_sum == exp_sum), log1p(rest), tl.log(exp_sum))
    log_probs = exponent - log_sum
    entropy = log_sum - (weighted + times_exp(exponent, label_exp)) / exp_sum
    collision = (squares + label_exp * label_exp) / (exp_sum * exp_sum)
    log_probs = tl.where(active, log_probs, 0.0)
    return top, exp_sum, rest, log_probs, tl.where(active, entropy, 0.0), tl.where(active, collision, 0.0)


@triton.jit(
    do_not_specialize=["num_tokens", "num_shards", "vocab_size", "ignore_index"],
    # Vectors cut out of others lie anywhere; their alignment is not worth a compilation.
    do_not_specialize_on_alignment=[
        "stats",
        "labels",
        "row_max",
        "exp_sum",
        "rest",
        "log_probs",
        "entropy",
        "collision",
    ],
)
def merge_kernel(
    stats,
    labels,
    row_max,
    exp_sum,
    rest,
    log_probs,
    entropy,
    collision,
    num_tokens,
    num_shards,
    vocab_size,
    ignore_index,
    inverse_temperature,
    BLOCK: tl.constexpr,
):
    """Every output [T], from stats [num_shards, T, 5]."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = row < num_tokens
    active = is_active(labels, labels, row, mask, ignore_index, False)
    merged = merge_rows(stats, labels, row, active, num_tokens, num_shards, vocab_size, inverse_temperature)
    tl.store(row_max + row, merged[0], mask=mask)
    tl.store(exp_sum + row, merged[1], mask=mask)
    tl.store(rest + row, merged[2], mask=mask)
    tl.store(log_probs + row, merged[3], mask=mask)
    tl.store(entropy + row, merged[4], mask=mask)
    tl.store(collision + row, merged[5], mask=mask)
