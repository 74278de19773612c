"""`rest_megatron.method.curriculum`: Eq. 16-17."""

import pytest
import torch

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.curriculum import anneal, scheduled_weights
from rest_megatron.method.feedback import FeedbackState
from rest_megatron.method.weights import WeightState

SETTINGS = WeightsConfig(alpha_format=0.4, alpha_parameters=0.6, alpha_cot=0.2, w_min=0.5, w_max=1.5)
WEIGHTS = torch.tensor([1.2, 1.1, 0.6, 0.9], dtype=torch.float64)


@pytest.mark.parametrize(
    "progress, expected",
    [(0.0, [1.2, 1.1, 0.6, 0.9]), (0.5, [1.0, 1.1, 0.9, 1.0]), (1.0, [0.8, 1.1, 1.2, 1.1])],
)
def test_format_falls_parameters_and_thought_rise_and_the_name_stays(progress, expected):
    torch.testing.assert_close(anneal(WEIGHTS, progress, SETTINGS), torch.tensor(expected, dtype=torch.float64))


def test_weights_stop_at_floor_and_ceiling():
    weights = torch.tensor([0.6, 1.9, 1.3, 1.45], dtype=torch.float64)
    assert anneal(weights, 1.0, SETTINGS).tolist() == [0.5, 1.9, 1.5, 1.5]


def test_no_curriculum_leaves_the_weights():
    assert torch.equal(anneal(WEIGHTS, 0.7, WeightsConfig(curriculum="none")), WEIGHTS)


def test_the_input_is_not_changed():
    weights = WEIGHTS.clone()
    anneal(weights, 1.0, SETTINGS)
    assert torch.equal(weights, WEIGHTS)


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_progress_outside_its_range_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        anneal(WEIGHTS, progress, SETTINGS)


def test_every_response_is_annealed_by_itself():
    rows = torch.stack([WEIGHTS, WEIGHTS.flip(0), torch.full_like(WEIGHTS, 1.5)])
    annealed = anneal(rows, 0.5, SETTINGS)
    for row, expected in zip(rows, annealed, strict=True):
        assert torch.equal(anneal(row, 0.5, SETTINGS), expected)


def test_a_curriculum_that_follows_accuracies_is_refused():
    with pytest.raises(ValueError, match="feedback"):
        anneal(WEIGHTS, 0.5, WeightsConfig(curriculum="feedback"))


@pytest.mark.parametrize(
    "curriculum, expected",
    [("none", [1.0, 1.0, 0.0, 1.0]), ("linear", [0.8, 1.0, 0.0, 1.1]), ("feedback", [0.8, 1.2, 0.0, 1.0])],
)
def test_the_rule_comes_first_then_the_curriculum_then_the_switches(curriculum, expected):
    settings = WeightsConfig(
        rule="constant",
        curriculum=curriculum,
        alpha_format=0.4,
        alpha_parameters=0.6,
        alpha_cot=0.2,
        feedback_shift=0.2,
        use_parameters=False,
    )
    weights = scheduled_weights(WEIGHTS, 0.5, WeightState(feedback=FeedbackState(saturation=(1.0, 0.0, 0.0))), settings)
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
