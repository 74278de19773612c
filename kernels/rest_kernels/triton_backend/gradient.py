"""Triton: the gradient with respect to one shard of the logits, in one read and one write (4 bytes each in bfloat16).

dx_v = (1 / tau) [ g 1(v = y) - p_v ((g + h H) + h log p_v) ], with g = dL/dlog p_y and h = dL/dH. A column costs
e^z (constant + slope z); the label's own column is taken from 1 - p_y = R / S, which keeps its digits near p_y = 1.
Everything is float32 and rounded once, at the store.
"""

import triton
import triton.language as tl

from .rows import LN_2, bounded_exponent, row_offset, widen

# e^-128 is 0 in float32. Stands in for the log p = -inf of a label without probability.
LOG_PROB_FLOOR = tl.constexpr(-128.0)


@triton.jit
def _columns(x, column, label, target, row_max, scale, constant, slope, HAS_ENTROPY: tl.constexpr):
    """The gradient of the columns x [BLOCK] of one row; `label` counts from the first of them."""
    if HAS_ENTROPY:
        exponent = bounded_exponent(x, row_max, scale)
        grad = tl.exp2(exponent) * (constant + slope * exponent)
    else:
        grad = tl.exp2((x - row_max) * scale) * constant
    return tl.where(column == label, target, grad)


@triton.jit
def _entropy_constants(h, total, log_prob, entropy):
    """What h adds to (target, constant) and the slope, before they are divided by tau."""
    log_prob = tl.maximum(log_prob, LOG_PROB_FLOOR, propagate_nan=tl.PropagateNan.ALL)
    target = -h * tl.exp(log_prob) * (entropy + log_prob)
    return target, -h * (entropy - tl.log(total)) / total, -h * LN_2 / total


@triton.jit(
    do_not_specialize=["vocab_start", "ignore_index"],
    # Vectors cut out of others lie anywhere; their alignment is not worth a compilation.
    do_not_specialize_on_alignment=[
        "labels",
        "log_prob_grad",
        "entropy_grad",
        "upstream",
        "row_max",
        "exp_sum",
        "rest",
        "log_probs",
        "entropy",
    ],
)
def logits_gradient_kernel(
    logits,
    labels,
    log_prob_grad,
    entropy_grad,
    upstream,
    row_max,
    exp_sum,
    rest,
    log_probs,
    entropy,
    grad,
    num_columns,
    row_width,
    inner_rows,
    outer_stride,
    inner_stride,
    grad_inner_rows,
    grad_outer_stride,
    grad_inner_stride,
    vocab_start,
    ignore_index,
    scale,
    inverse_temperature,
    HAS_ENTROPY: tl.constexpr,
    HAS_UPSTREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad [.., row_width] may be the logits themselves. Rows whose g and h are 0 are not read and get exactly 0.

    `upstream` is a scalar on the device that multiplies g and h; `scale` is log2(e) / temperature. Columns from
    `num_columns` on are padding and get 0.
    """
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    out_row = grad + row_offset(row, grad_inner_rows, grad_outer_stride, grad_inner_stride)
    row_label = tl.load(labels + row)
    g = tl.load(log_prob_grad + row)
    h = tl.load(entropy_grad + row) if HAS_ENTROPY else 0.0
    if (row_label != ignore_index) & ((g != 0) | (h != 0)):
        if HAS_UPSTREAM:
            factor = tl.load(upstream)
            g, h = g * factor, h * factor
        x_row = logits + row_offset(row, inner_rows, outer_stride, inner_stride)
        top, total = tl.load(row_max + row), tl.load(exp_sum + row)
        target = g * (tl.load(rest + row) / total)
        constant, slope = -g / total, 0.0
        if HAS_ENTROPY:
            extra = _entropy_constants(h, total, tl.load(log_probs + row), tl.load(entropy + row))
            target, constant, slope = target + extra[0], constant + extra[1], extra[2] * inverse_temperature
        target, constant = target * inverse_temperature, constant * inverse_temperature
        local_label = row_label - vocab_start
        owned = (local_label >= 0) & (local_label < num_columns)
        label = tl.where(owned, local_label, -1).to(tl.int32)
        num_full = num_columns // BLOCK
        for i in range(num_full):
            column = i * BLOCK + columns
            x = widen(tl.load(x_row + column))
            value = _columns(x, columns, label - i * BLOCK, target, top, scale, constant, slope, HAS_ENTROPY)
            tl.store(out_row + column, value.to(grad.dtype.element_ty))
        for i in range(num_full, tl.cdiv(row_width, BLOCK)):
            column = i * BLOCK + columns
            x = widen(tl.load(x_row + column, mask=column < row_width))
            value = _columns(x, columns, label - i * BLOCK, target, top, scale, constant, slope, HAS_ENTROPY)
            # Said of `column`, the comparisons would take a register for each of a thread's columns.
            value = tl.where(columns < num_columns - i * BLOCK, value, 0.0)
            tl.store(out_row + column, value.to(grad.dtype.element_ty), mask=column < row_width)
    else:
        zeros = tl.zeros([BLOCK], grad.dtype.element_ty)
        for i in range(tl.cdiv(row_width, BLOCK)):
            column = i * BLOCK + columns
            tl.store(out_row + column, zeros, mask=column < row_width)
