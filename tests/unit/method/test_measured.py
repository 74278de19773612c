"""`rest_megatron.method.measured`: region weights from measured gradients."""

import pytest
import torch

from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.measured import MeasuredRegions, measured_weights

BASE = torch.tensor([2.0, 0.8, 0.9, 0.3], dtype=torch.float64)
WIDE = WeightsConfig(clamp_min=1e-3, clamp_max=1e3)
SURE = (0.0,) * 4


def test_a_sure_measurement_weighs_by_signal_over_noise():
    weights = measured_weights(BASE, MeasuredRegions((4.0, 2.0, 3.0, 0.5), (1.0, 1.0, 3.0, 1.0), SURE), WIDE)
    ratios = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(weights, ratios / ratios.mean())


def test_a_distance_counts_as_far_as_its_standard_error_lets_it():
    signal, noise = (4.0, 2.0, 1.0, 1.0), (1.0, 2.0, 1.0, 1.0)
    scaled = torch.tensor([4.0, 1.0, 1.0, 1.0], dtype=torch.float64) / 1.75
    error = torch.tensor([0.0, 7.0, 1.75, 1e9], dtype=torch.float64)
    spread = error / torch.tensor(noise) / 1.75
    distance = scaled - BASE
    expected = BASE + distance**3 / (distance**2 + spread**2)
    weights = measured_weights(BASE, MeasuredRegions(signal, noise, tuple(error.tolist())), WIDE)
    torch.testing.assert_close(weights, expected)
    assert weights[0] == pytest.approx(4 / 1.75) and weights[3] == pytest.approx(0.3)


def test_weights_stay_within_the_clamp_and_a_negative_signal_is_at_its_lower_end():
    measured = MeasuredRegions((9.0, -5.0, 0.1, 0.1), (1.0, 1.0, 1.0, 1.0), SURE)
    assert measured_weights(BASE, measured, WeightsConfig()).tolist() == [2.0, 0.3, 0.3, 0.3]


@pytest.mark.parametrize(
    "signal, noise, kept",
    [
        ((1.0, 0.0, 1.0, 1.0), (1.0, 0.0, 1.0, 1.0), [1]),  # a region without a gradient
        ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, -0.1, 1.0), [2]),  # whose noise comes out negative
        ((-1.0, 0.0, -2.0, -1.0), (1.0, 1.0, 1.0, 1.0), [0, 1, 2, 3]),
        ((0.0,) * 4, (0.0,) * 4, [0, 1, 2, 3]),
    ],
)
def test_what_was_not_measured_keeps_the_rule_s_weight(signal, noise, kept):
    weights = measured_weights(BASE, MeasuredRegions(signal, noise, SURE), WIDE)
    assert torch.isfinite(weights).all() and weights[kept].tolist() == BASE[kept].tolist()
