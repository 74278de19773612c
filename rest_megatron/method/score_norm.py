"""The expected squared norm of a token's score over all parameters, from few passes, and what it says of the regions.

E|g|^2 = sum_y p(y) |d log p(y) / d theta|^2. Likely candidates are taken exactly, the rest by draws from the
renormalised tail: E = sum_exact p |g|^2 + tail_mass * mean(draws), without bias over the draws.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr

COVERED = 0.95
FEWEST, MOST, DRAWS = 2, 8, 2


class Candidates(NamedTuple):
    """Next tokens whose gradients are taken for one position."""

    exact: tuple[int, ...]
    drawn: tuple[int, ...]
    """From the tail; a token may come twice."""
    tail_mass: float


def choose_candidates(p: np.ndarray, seed: Sequence[int]) -> Candidates:
    """Candidates for p [V] float64, by their share of the logit-level norm, sum_y p_y (1 - 2 p_y + c) = 1 - c.

    The largest are exact until 95 % is covered, 2 to 8 of them. seed: of the draws.
    """
    collision = float(np.square(p).sum())
    share = p * (1.0 - 2.0 * p + collision)
    order = np.argsort(-share, kind="stable")[:MOST]
    enough = int((np.cumsum(share[order]) < COVERED * (1.0 - collision)).sum()) + 1
    exact = order[: max(FEWEST, min(enough, len(order)))]
    tail = p.copy()
    tail[exact] = 0.0
    mass = float(tail.sum())
    if mass <= 0.0:
        return Candidates(tuple(exact.tolist()), (), 0.0)
    drawn = np.random.default_rng(seed).choice(len(p), DRAWS, p=tail / mass)
    return Candidates(tuple(exact.tolist()), tuple(drawn.tolist()), mass)


def expected_norm(p_exact: Sequence[float], exact: Sequence[float], drawn: Sequence[float], tail_mass: float):
    """(E|g|^2, its standard error) from the squared norms of the exact and the drawn candidates."""
    known = float(np.dot(p_exact, exact))
    if not drawn:
        return known, 0.0
    error = float(np.std(drawn, ddof=1)) / math.sqrt(len(drawn)) if len(drawn) > 1 else math.nan
    return known + tail_mass * float(np.mean(drawn)), tail_mass * error


def choose_tokens(regions: np.ndarray, count: int, least: int, seed: int) -> np.ndarray:
    """Ascending indices of about `count` tokens, without replacement: in proportion, but `least` of each region or all.

    regions: [T], the region of each token, in an order that no layout changes.
    """
    random, chosen = np.random.default_rng(seed), []
    for region in np.unique(regions):
        own = np.flatnonzero(regions == region)
        wanted = min(len(own), max(least, round(count * len(own) / len(regions))))
        chosen.append(random.choice(own, wanted, replace=False))
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, dtype=np.int64)


def correlations(proxy: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(Spearman, Pearson of the logarithms); nan where there are fewer than 3 positive pairs or one is constant."""
    positive = (proxy > 0) & (truth > 0)
    proxy, truth = proxy[positive], truth[positive]
    if len(proxy) < 3 or np.ptp(proxy) == 0 or np.ptp(truth) == 0:
        return math.nan, math.nan
    return float(spearmanr(proxy, truth)[0]), float(pearsonr(np.log(proxy), np.log(truth))[0])


def region_weights(means: np.ndarray) -> np.ndarray:
    """Theorem 2 of arXiv 2509.21826: inverse to each region's mean norm (positive), with mean 1 over regions."""
    inverse = 1.0 / means
    return inverse / inverse.mean()


def predicted_variance(share: np.ndarray, weights: np.ndarray, truth: np.ndarray) -> float:
    """sum_r share_r w_r^2 E|g|^2_r, w of mean 1 over tokens, relative to uniform weights."""
    weights = weights / (share * weights).sum()
    return float((share * weights**2 * truth).sum() / (share * truth).sum())
