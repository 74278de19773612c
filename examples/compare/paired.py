"""Statistics of runs that are paired by their seeds: Student's t throughout, computed by SciPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values, with the half width of its 95% interval; None for fewer than two."""

    n: int
    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of `n` paired differences.

    sd: of one difference; p: two-sided, not corrected for other comparisons. None where they are not defined.
    """

    sd: float | None
    p: float | None


def estimate(values: np.ndarray) -> Estimate:
    """The mean of values, [n] of at least one, and its interval by Student's t."""
    n = len(values)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(values)) if n > 1 else None
    return Estimate(n, float(np.mean(values)), half_width)


def difference(own: np.ndarray, base: np.ndarray) -> Difference:
    """own - base, [n] each and paired, against no difference at all (paired t-test)."""
    found = estimate(own - base)
    if found.n < 2:
        return Difference(found.n, found.mean, None, None, None)
    sd, p = float(np.std(own - base, ddof=1)), float(stats.ttest_rel(own, base).pvalue)
    return Difference(found.n, found.mean, found.half_width, sd, None if math.isnan(p) else p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    None, where nothing could be compared, stays None and does not count.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        corrected[i] = highest = max(highest, min(1.0, p * (len(known) - rank)))
    return corrected


def power(n: float, effect: float, sd: float) -> float:
    """The probability that a paired t-test over n seeds, two-sided at 5%, finds `effect` in its own direction.

    sd: of one difference. Without an effect the statistic is Student's t, with one it is noncentral t, shifted by
    sqrt(n) effect / sd.
    """
    critical = stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, math.sqrt(n) * effect / sd))


def seeds_needed(effect: float, sd: float) -> int:
    """The fewest seeds whose `power` is at least 80%. As rough as an sd that comes from a few seeds."""
    # Beyond 30 two seeds are certain to find it, and noncentral t leaves its range.
    if sd * 30 <= effect or power(2, effect, sd) >= POWER:
        return 2
    # A normal statistic would need 7.85 (sd / effect)^2; t needs a few more.
    most = 9 * (sd / effect) ** 2 + 20
    return math.ceil(optimize.brentq(lambda n: power(n, effect, sd) - POWER, 2, most))
