"""Triton: what a row of the logits is, and the exponents of a softmax."""

import triton
import triton.language as tl

from .. import tokens

NUM_STATS = tl.constexpr(tokens.NUM_STATS)
# Below every finite bfloat16, float16 and float32: the maximum of no column at all. Finite, so that x - m is never
# inf - inf.
LOWEST = tl.constexpr(-3.4028234663852886e38)
# 2^-160 is 0 in float32. Stands in for 2^-inf, because 0 * -inf is not a number.
EXPONENT_FLOOR = tl.constexpr(-160.0)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def is_active(labels, loss_weights, row, mask, ignore_index, HAS_WEIGHTS: tl.constexpr):
    """Whether a row counts: it has a label, and a weight other than 0. False where `mask` is."""
    active = mask & (tl.load(labels + row, mask=mask, other=0) != ignore_index)
    if HAS_WEIGHTS:
        active = active & (tl.load(loss_weights + row, mask=mask, other=0.0) != 0)
    return active


@triton.jit
def row_offset(row, inner_rows, outer_stride, inner_stride):
    """Where row `row` of the flattened leading shape starts, in elements, int64: two strides reach every layout."""
    outer = (row // inner_rows).to(tl.int64)
    inner = (row % inner_rows).to(tl.int64)
    return outer * outer_stride + inner * inner_stride


@triton.jit
def widen(x):
    """The logits x in float32, exactly.

    A bfloat16 is the upper half of a float32. Said with integers, the upper of two in a register is one instruction; a
    plain conversion makes it two.
    """
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def bounded_exponent(x, row_max, scale):
    """max((x - row_max) * scale, floor), for 2^; not-a-number stays so.

    The difference comes first, then the scale: the other way round loses digits when logits are large.
    """
    return tl.maximum((x - row_max) * scale, EXPONENT_FLOOR, propagate_nan=tl.PropagateNan.ALL)
