"""How much the policy gradient varies from prompt to prompt, measured on one step's answers.

The gradient of a step is the mean of its groups' gradients g_1 .. g_n, one group of answers per prompt. Over the choice
of prompts and answers, g has a mean and a covariance C, of which this estimates, without bias,

    variance           tr C  = (sum_i |g_i|^2 - |sum_i g_i|^2 / n) / (n - 1)
    mean_norm_squared  |E g|^2 = |sum_i g_i / n|^2 - tr C / n              (may come out negative when noise dominates)
    standard_error     of tr C, from the spread of |g_i|^2 over the groups: sd(|g_i|^2) / sqrt(n)
    relative           tr C / |E g|^2, the noise-to-signal ratio ("simple noise scale", arXiv 1812.06162)

Token weights change the expected gradient as well as its noise: of these numbers only the relative one compares two
weightings, and it does not tell which learns better (`comparison`).
"""

import math
from collections.abc import Sequence
from statistics import stdev
from typing import NamedTuple


class GradientVariance(NamedTuple):
    """Variance of one group's gradient, see above."""

    variance: float
    mean_norm_squared: float
    norms_squared: tuple[float, ...]
    """|g_i|^2 of each group."""

    @property
    def relative(self) -> float:
        """variance / mean_norm_squared; inf where the mean is lost in the noise."""
        return self.variance / self.mean_norm_squared if self.mean_norm_squared > 0 else math.inf

    @property
    def standard_error(self) -> float:
        """Of the variance."""
        return mean_error(self.norms_squared)

    def to_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return {
            "variance": self.variance,
            "standard_error": self.standard_error,
            "mean_norm_squared": self.mean_norm_squared,
            "relative": self.relative,
            "groups": len(self.norms_squared),
        }


def mean_error(values: Sequence[float]) -> float:
    """The standard error of the mean of `values`; nan for fewer than two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def from_moments(squares: Sequence[float], total_squared: float) -> GradientVariance:
    """From each |g_i / n|^2 and |sum_i g_i / n|^2, of the groups' shares g_i / n of a step; at least two groups."""
    n = len(squares)
    variance = n * (n * sum(squares) - total_squared) / (n - 1)
    return GradientVariance(variance, total_squared - variance / n, tuple(n * n * x for x in squares))
