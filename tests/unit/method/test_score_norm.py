"""`rest_megatron.method.score_norm`: a token's expected score norm from few candidates, and weights by it."""

import math

import numpy as np
import pytest

from rest_megatron.method.score_norm import (
    choose_candidates,
    choose_tokens,
    correlations,
    expected_norm,
    predicted_variance,
    region_weights,
)

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.full(40, 0.3))
NORMS = RANDOM.lognormal(size=40)


def estimate(seed: int) -> tuple[float, float]:
    one = choose_candidates(P, (seed,))
    exact, drawn = ([NORMS[y] for y in tokens] for tokens in (one.exact, one.drawn))
    return expected_norm([P[y] for y in one.exact], exact, drawn, one.tail_mass)


def test_the_estimate_is_that_of_all_next_tokens_on_average_and_its_error_is_its_spread():
    estimates, errors = np.array([estimate(seed) for seed in range(4000)]).T
    truth, spread = float(P @ NORMS), estimates.std()
    assert abs(estimates.mean() - truth) < 4 * spread / math.sqrt(len(estimates))
    assert math.sqrt(np.square(errors).mean()) == pytest.approx(spread, rel=0.1)


def test_likely_candidates_are_exact_until_they_hold_most_of_the_logits_score_norm():
    sure = np.array([0.97, 0.02, 0.005, 0.005])
    share = sure * (1 - 2 * sure + np.square(sure).sum())
    exact = choose_candidates(sure, (0,)).exact
    assert exact[0] == 1 and 0 in exact  # the rare alternatives of a sure token hold its norm
    assert share[list(exact)].sum() >= 0.95 * share.sum()
    flat = choose_candidates(np.full(100, 0.01), (0,))
    assert len(flat.exact) == 8 and len(flat.drawn) == 2 and flat.tail_mass == pytest.approx(0.92)
    assert not set(flat.exact) & set(flat.drawn)


def test_all_of_a_small_vocabulary_is_exact():
    one = choose_candidates(np.array([0.5, 0.5]), (0,))
    assert sorted(one.exact) == [0, 1] and one.drawn == () and one.tail_mass == 0.0
    assert expected_norm([0.5, 0.5], [2.0, 4.0], [], 0.0) == (3.0, 0.0)


def test_tokens_are_drawn_in_proportion_with_some_of_each_region():
    regions = np.repeat([0, 1, 2], [900, 90, 10])
    chosen = choose_tokens(regions, 100, 20, seed=3)
    assert (np.diff(chosen) > 0).all() and np.bincount(regions[chosen]).tolist() == [90, 20, 10]
    assert (chosen == choose_tokens(regions, 100, 20, seed=3)).all()
    assert (chosen != choose_tokens(regions, 100, 20, seed=4)).any()


def test_correlations_are_of_ranks_and_of_logarithms():
    proxy = np.array([1.0, 10.0, 100.0, 1000.0])
    assert correlations(proxy, proxy**2) == pytest.approx((1.0, 1.0))
    assert correlations(proxy, np.array([1.0, 2.0, 3.0, 100.0]))[0] == pytest.approx(1.0)
    assert all(map(math.isnan, correlations(proxy, np.ones(4))))
    assert all(map(math.isnan, correlations(np.zeros(4), proxy)))


def test_theorem_2_s_weights_leave_the_least_variance():
    share, truth = np.array([0.5, 0.1, 0.4]), np.array([1.0, 20.0, 5.0])
    best = region_weights(truth)
    assert best.mean() == pytest.approx(1.0)
    least = predicted_variance(share, best, truth)
    assert least == pytest.approx(1 / ((share / truth).sum() * (share @ truth)))  # Cauchy and Schwarz
    assert predicted_variance(share, np.ones(3), truth) == pytest.approx(1.0)
    for other in RANDOM.uniform(0.1, 3.0, (50, 3)):
        assert predicted_variance(share, other, truth) >= least
