"""The interval of a mean of few runs, by Student's t."""

import math

import numpy as np


def interval(values: np.ndarray, level: float = 0.95) -> float:
    """Half width of the `level` interval of the mean of `values`, at least two of them."""
    n = len(values)
    return quantile(n - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(n)


def quantile(degrees: int, level: float) -> float:
    """T such that |T| <= t with probability `level`, T of Student's distribution, by bisection."""
    low, high = 0.0, 1e3
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < level else (low, middle)
    return high


def _inside(t: float, degrees: int) -> float:
    """P(|T| <= t), from the density over the angle x = atan(T / sqrt(degrees)), where it is a power of a cosine."""
    x = np.linspace(0.0, math.atan(t / math.sqrt(degrees)), 4001)
    scale = 2 * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return scale * float(np.trapezoid(np.cos(x) ** (degrees - 1), x))
