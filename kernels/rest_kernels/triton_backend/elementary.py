"""Triton: elementary functions whose plain form loses digits or makes 0 * inf, in float32."""

import triton
import triton.language as tl

from .. import reference

LOG_RATIO_BOUND = tl.constexpr(reference.LOG_RATIO_BOUND)
# e^-110 is 0 in float32. Stands in for e^-inf.
EXP_FLOOR = tl.constexpr(-110.0)


@triton.jit
def bounded_exp(exponent):
    """e^exponent; exactly 0 below the floor. Not-a-number stays so."""
    return tl.exp(tl.maximum(exponent, EXP_FLOOR, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def times_exp(exponent, exp):
    """exponent * exp with exp = e^exponent; 0 for exponent = -inf."""
    return tl.where(exp == 0, 0.0, exponent * exp)


@triton.jit
def log1p(x):
    """log(1 + x), x >= 0, to full relative precision: the rounding error of 1 + x cancels (Kahan)."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.log(y) * (x / (y - 1.0)))


@triton.jit
def k3(delta):
    """e^d - 1 - d. A series near 0, where the difference would cancel."""
    series = 1.0 + delta / 3 * (1.0 + delta / 4 * (1.0 + delta / 5 * (1.0 + delta / 6 * (1.0 + delta / 7))))
    return tl.where(tl.abs(delta) < 0.25, delta * delta / 2 * series, tl.exp(delta) - 1.0 - delta)


@triton.jit
def bounded_log_ratio(delta):
    """delta held within +-LOG_RATIO_BOUND; not-a-number stays so."""
    low = tl.maximum(delta, -LOG_RATIO_BOUND, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, LOG_RATIO_BOUND, propagate_nan=tl.PropagateNan.ALL)
