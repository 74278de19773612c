"""`rest_megatron.step.gradients`: when the regions' gradients are measured, and what is told of them."""

import pytest
import torch

from rest_megatron.actor.region_gradients import Measurement
from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.curriculum import scheduled_weights
from rest_megatron.method.measured import MeasuredRegions
from rest_megatron.method.weights import WeightState
from rest_megatron.step.gradients import measurement_due, measurement_metrics, uniform_weights
from rest_megatron.step.weigh import StepWeights

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


def test_the_weights_that_a_measurement_gives_are_told_before_curriculum_and_switches():
    means = (0.1, 0.2, 0.3, 0.8)
    found = MeasuredRegions((4.0, 2.0, 3.0, 0.5), (1.0, 1.0, 3.0, 1.0), (0.0, 0.1, 0.2, 0.3))
    state = WeightState(running_mean=means)
    settings = WeightsConfig(rule="measured", use_cot=False)
    metrics = measurement_metrics(Measurement(found, cost=3.5), state, settings)
    names = ("format", "tool_name", "parameters", "cot")
    told = [metrics.pop(f"measured/weight/{name}") for name in names]
    plain = WeightsConfig(rule="measured", curriculum="none")
    next_step = WeightState(running_mean=means, measured=found)
    statistic = torch.tensor(means, dtype=torch.float64)
    assert told == scheduled_weights(statistic, 0.5, next_step, plain).tolist()
    signals = [metrics[f"measured/signal/{name}"] for name in names]
    assert signals == list(found.signal) and metrics["measured/cost"] == 3.5


def test_a_region_that_is_switched_off_counts_in_the_whole_gradient():
    off = StepWeights(torch.tensor([0.0, 1.5]), {}, NOTHING, torch.tensor([1.0, 0.5]))
    assert uniform_weights(off).corrected.tolist() == [1.0, 0.5]
