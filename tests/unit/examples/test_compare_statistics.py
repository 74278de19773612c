"""The statistics of the comparison of methods, against tables, simulation and definitions."""

import sys

import numpy as np
import pytest

from tests.paths import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "compare"))

import paired


@pytest.mark.parametrize("runs, t", [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_the_interval_is_that_of_the_printed_tables_of_t(runs, t):
    values = np.arange(runs) ** 1.5
    found = paired.estimate(values)
    assert (found.n, found.mean) == (runs, pytest.approx(values.mean()))
    assert found.half_width == pytest.approx(t * values.std(ddof=1) / runs**0.5, rel=3e-5)


def test_a_single_value_has_no_interval_and_no_difference_no_p():
    assert paired.estimate(np.array([0.5])).half_width is None
    found = paired.difference(np.array([0.5]), np.array([0.25]))
    assert (found.n, found.mean, found.half_width, found.sd, found.p) == (1, 0.25, None, None, None)
    assert paired.difference(np.ones(3), np.ones(3)).p is None


def test_p_is_five_percent_where_the_interval_ends_at_zero():
    base = np.array([0.1, 0.4, 0.2, 0.9])
    noise = np.array([0.03, -0.02, 0.05, -0.06])
    own = base + noise - noise.mean() + paired.estimate(noise).half_width
    found = paired.difference(own, base)
    assert found.mean == pytest.approx(found.half_width) and found.p == pytest.approx(0.05)


def test_holm_multiplies_the_smallest_p_most_and_never_reorders():
    # The worked example: .01 x 4, .03 x 3, then .03 x 2 and .04 x 1 may not fall below.
    assert paired.holm([0.04, 0.01, None, 0.03, 0.03]) == pytest.approx([0.09, 0.04, None, 0.09, 0.09])
    assert paired.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("seeds, effect, sd", [(3, 0.02, 0.01), (5, 0.02, 0.014), (10, 0.02, 0.02), (4, 0.0, 0.02)])
def test_power_is_the_share_of_simulated_comparisons_that_find_the_effect(seeds, effect, sd):
    draws = np.random.default_rng(0).normal(effect, sd, (200_000, seeds))
    t = draws.mean(1) / (draws.std(1, ddof=1) / seeds**0.5)
    critical = {3: 4.30265, 4: 3.18245, 5: 2.77645, 10: 2.26216}[seeds]
    # Five standard errors of a share of 200,000.
    assert paired.power(seeds, effect, sd) == pytest.approx((t > critical).mean(), abs=5 * 0.5 / 200_000**0.5)


@pytest.mark.parametrize("sd", [0.0, 0.0001, 0.001, 0.005, 0.01, 0.014, 0.027, 0.3])
def test_the_seeds_needed_are_the_fewest_with_the_power(sd):
    seeds = paired.seeds_needed(0.02, sd)
    assert seeds == 2 or paired.power(seeds - 1, 0.02, sd) < 0.8 <= paired.power(seeds, 0.02, sd)
    # A known sd would need (z_.975 + z_.8)^2 (sd / effect)^2; t needs up to three more.
    normal = (1.959964 + 0.841621) ** 2 * (sd / 0.02) ** 2
    assert max(2, normal) <= seeds <= normal + 3.5
