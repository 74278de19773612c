"""Triton: softmax statistics of one vocabulary shard, in one read of the logits (2 bytes each in bfloat16).

One program reduces one row. Each thread keeps the running (m, s, u, q) of the columns it loads, so the loop has no
barrier; the threads are merged once, at the end of the row, by the formula that merges shards. Exponentials are taken
in base 2: e^z = 2^(z log2 e). Rows that are not active are not read.
"""

import triton
import triton.language as tl

from .rows import LN_2, LOWEST, NUM_STATS, bounded_exponent, is_active, row_offset, widen


@triton.jit
def _sum(x):
    """x [VECTORS, THREADS, WIDTH] summed by each thread."""
    return tl.sum(tl.sum(x, axis=2), axis=0)


@triton.jit
def _accumulate(x, m, s, u, q, scale, VECTORS: tl.constexpr, COLLISION: tl.constexpr):
    """Add the columns x [VECTORS * THREADS, WIDTH] to the running statistics [THREADS]; u is in base-2 exponents.

    A thread's maximum moves by d = (m - m') / tau: s' = e^d s, u' = e^d (u + d s), q' = e^2d q, plus the new columns.
    """
    # Row r of x is vector r // THREADS of thread r % THREADS, so this moves no data. A load in three dimensions would
    # be spread over the threads along the first or the second of them, as the version of Triton has it.
    x = tl.reshape(x, [VECTORS, x.shape[0] // VECTORS, x.shape[1]])
    new_m = tl.maximum(m, tl.max(tl.max(x, axis=2), axis=0))
    shift = bounded_exponent(m, new_m, scale)
    factor = tl.exp2(shift)
    exponent = bounded_exponent(x, new_m[None, :, None], scale)
    exp = tl.exp2(exponent)
    u = (u + shift * s) * factor + _sum(exponent * exp)
    s = s * factor + _sum(exp)
    if COLLISION:
        q = q * (factor * factor) + _sum(exp * exp)
    return new_m, s, u, q


@triton.jit
def _store(out, m, s, u, q, target, scale):
    """Merge the threads of one row and write (m, s, u, q, t); a row without probability gives (-inf, 0, 0, 0, t)."""
    row_max = tl.max(m, axis=0)
    shift = bounded_exponent(m, row_max, scale)
    factor = tl.exp2(shift)
    total = tl.sum(s * factor, axis=0)
    # Not-a-number is no maximum, but it is in the sum: such a row is not empty.
    empty = (row_max == LOWEST) & (total == 0)
    tl.store(out, tl.where(empty, float("-inf"), row_max))
    tl.store(out + 1, total)
    tl.store(out + 2, tl.sum((u + shift * s) * factor, axis=0) * LN_2)
    tl.store(out + 3, tl.sum(q * (factor * factor), axis=0))
    tl.store(out + 4, target)


@triton.jit(
    do_not_specialize=["vocab_start", "ignore_index"],
    # Vectors cut out of others lie anywhere; their alignment is not worth a compilation.
    do_not_specialize_on_alignment=["labels", "loss_weights", "stats"],
)
def softmax_stats_kernel(
    logits,
    labels,
    loss_weights,
    stats,
    num_columns,
    inner_rows,
    outer_stride,
    inner_stride,
    vocab_start,
    ignore_index,
    scale,
    HAS_WEIGHTS: tl.constexpr,
    COLLISION: tl.constexpr,
    VECTORS: tl.constexpr,
    THREADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """stats [T, 5] = (m, s, u, q, t) of `reference.shard_stats`; `scale` is log2(e) / temperature.

    A thread takes WIDTH columns at a time, THREADS of them side by side, and VECTORS times that is a block. All blocks
    that are full and without the label come first, so that the loop over them needs no mask; then the block of the
    label and the last, cut one.
    """
    BLOCK: tl.constexpr = VECTORS * THREADS * WIDTH
    row = tl.program_id(0)
    columns = tl.arange(0, VECTORS * THREADS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    m = tl.full([THREADS], LOWEST, tl.float32)
    s = tl.zeros([THREADS], tl.float32)
    u = tl.zeros([THREADS], tl.float32)
    q = tl.zeros([THREADS], tl.float32)
    target = float("-inf")
    if is_active(labels, loss_weights, row, True, ignore_index, HAS_WEIGHTS):
        x_row = logits + row_offset(row, inner_rows, outer_stride, inner_stride)
        local_label = tl.load(labels + row) - vocab_start
        owned = (local_label >= 0) & (local_label < num_columns)
        label = tl.where(owned, local_label, num_columns).to(tl.int32)
        target = tl.load(x_row + label, mask=owned, other=float("-inf")).to(tl.float32)
        num_full = num_columns // BLOCK
        label_block = label // BLOCK
        num_plain = num_full - (label_block < num_full).to(tl.int32)
        for i in range(num_plain):
            block = i + (i >= label_block).to(tl.int32)
            x = widen(tl.load(x_row + block * BLOCK + columns))
            m, s, u, q = _accumulate(x, m, s, u, q, scale, VECTORS, COLLISION)
        for i in range(num_plain, tl.cdiv(num_columns, BLOCK)):
            column = tl.where(i < num_full, label_block, num_full) * BLOCK + columns
            x = widen(tl.load(x_row + column, mask=column < num_columns, other=float("-inf")))
            x = tl.where(column == label, float("-inf"), x)
            m, s, u, q = _accumulate(x, m, s, u, q, scale, VECTORS, COLLISION)
    _store(stats + row.to(tl.int64) * NUM_STATS, m, s, u, q, target, scale)
