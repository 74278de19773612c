"""How a bar is made of the noise, and what is above it."""

import math

import pytest

from tests.distributed.noise import BACKWARD, FORWARD, MULTIPLE, above, bars


@pytest.mark.parametrize(
    "name, noise, bar",
    [
        ("logits", 1e-6, MULTIPLE * 1e-6),
        ("logits", 0.0, MULTIPLE * FORWARD),
        ("gradient", 0.0, MULTIPLE * BACKWARD),
        ("weights", 1e-5, MULTIPLE * 1e-5),
    ],
)
def test_a_bar_is_a_multiple_of_the_noise_or_of_its_floor(name, noise, bar):
    assert bars({name: noise}) == {name: bar}


@pytest.mark.parametrize("error, failed", [(0.0, 0), (1.0, 0), (1.001, 1), (math.inf, 1), (math.nan, 1)])
def test_what_is_not_within_its_bar_is_named(error, failed):
    found = above({"logits": 0.5, "gradient": error}, {"logits": 1.0, "gradient": 1.0})
    assert len(found) == failed and all(line.startswith("gradient") for line in found)
