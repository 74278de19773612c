"""`rest_megatron.step.gradients`: when the regions' gradients are measured."""

import pytest

from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.measured import MeasuredRegions
from rest_megatron.method.weights import WeightState
from rest_megatron.step.gradients import measurement_due

NOTHING, SOMETHING = WeightState(), WeightState(measured=MeasuredRegions((1.0,) * 4, (1.0,) * 4, (0.0,) * 4))


@pytest.mark.parametrize(
    "settings, state, due",
    [
        ({"rule": "score_bound"}, NOTHING, []),
        ({}, SOMETHING, []),
        ({}, NOTHING, [3, 4, 5, 6, 7, 8]),  # until something could be measured
        ({"freeze_after": 0}, NOTHING, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"measure_every": 2}, SOMETHING, [3, 5, 7]),
        ({"measure_every": 3, "freeze_after": 0}, SOMETHING, [1, 4, 7]),
    ],
)
def test_the_first_measurement_is_made_when_the_base_stands_still(settings, state, due):
    weights = WeightsConfig(**{"rule": "measured", **settings})
    assert [step for step in range(1, 9) if measurement_due(state, step, weights)] == due
