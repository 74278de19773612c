"""Which lengths an update favours, against numpy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from rest_megatron.observe.lengths import length_bias


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_are_those_of_the_answers_with_a_gradient(seed):
    noise = np.random.default_rng(seed)
    lengths = noise.integers(5, 4000, 64)
    advantages = noise.normal(size=64).astype(np.float32) + (lengths > 2000)
    weights = np.abs(advantages) * noise.uniform(0.5, 2, 64) * (noise.random(64) > 0.2)
    found = length_bias(torch.tensor(lengths), torch.tensor(advantages), torch.tensor(weights))
    own = weights > 0
    length, advantage = lengths[own].astype(float), advantages[own].astype(float)
    assert 0 < (~own).sum() < 64
    assert found == pytest.approx(
        {
            "length_bias/correlation": pearsonr(length, advantage).statistic,
            "length_bias/better": length[advantage > 0].mean() / length[advantage < 0].mean(),
            "length_bias/weight": np.average(length, weights=weights[own]) / length.mean(),
        },
        rel=1e-12,
    )
    assert found["length_bias/correlation"] > 0 and found["length_bias/better"] > 1


def test_longer_answers_that_weigh_more_show():
    lengths, advantages = torch.tensor([10, 30]), torch.tensor([1.0, -1.0])
    found = length_bias(lengths, advantages, torch.tensor([1.0, 3.0]))
    assert list(found.values()) == pytest.approx([-1.0, 1 / 3, (10 + 90) / 4 / 20])
    assert length_bias(lengths, advantages, torch.ones(2))["length_bias/weight"] == 1


@pytest.mark.parametrize(
    "lengths, advantages, weights, undefined",
    [
        ([7, 9], [1.0, -1.0], [0.0, 0.0], {"correlation", "better", "weight"}),
        ([7, 7, 7], [0.1, 0.1, -0.2], [1.0, 1.0, 1.0], {"correlation"}),
        ([7, 8, 9], [0.1, 0.1, 0.1], [1.0, 1.0, 1.0], {"correlation", "better"}),
        ([7, 8], [0.1, -0.1], [1.0, 0.0], {"correlation", "better"}),
    ],
    ids=["no gradient", "equal lengths", "equal advantages", "one answer"],
)
def test_what_cannot_be_compared_is_nan(lengths, advantages, weights, undefined):
    found = length_bias(*(torch.tensor(values) for values in (lengths, advantages, weights)))
    assert {name.removeprefix("length_bias/") for name, value in found.items() if math.isnan(value)} == undefined
