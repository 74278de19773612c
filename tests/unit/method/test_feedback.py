"""`rest_megatron.method.feedback`: the curriculum that follows what the policy has learnt."""

import json
import math
import random

import pytest
import torch

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.feedback import FeedbackState, shift, update_feedback
from rest_megatron.method.regions import Region

SETTINGS = WeightsConfig(
    curriculum="feedback", feedback_shift=0.4, feedback_rate=0.1, feedback_target=0.9, feedback_patience=15
)
WEIGHTS = torch.tensor([1.1, 1.2, 0.9, 0.8], dtype=torch.float64)
NOTHING = (None, None, None)


def run(curve, settings=SETTINGS, state=None):
    """The states after each step of `curve`, a sequence of three accuracies."""
    states, state = [], state or FeedbackState()
    for accuracy in curve:
        state = update_feedback(state, accuracy, settings)
        states.append(state)
    return states


def learning_curve(steps: int, seed: int = 0):
    """Noisy accuracies: format is learnt first, then names, and parameters last and not to the target."""
    rng = random.Random(seed)

    def noisy(value):
        return min(max(value + rng.gauss(0, 0.02), 0.0), 1.0)

    return [
        (noisy(1 - math.exp(-t / 10)), noisy(min(0.1 + t / 130, 1.0)), noisy(min(t / 280, 0.7))) for t in range(steps)
    ]


def test_at_first_nothing_is_shifted():
    torch.testing.assert_close(shift(WEIGHTS, FeedbackState(), SETTINGS), WEIGHTS, rtol=0, atol=0)
    low = run([(0.1, 0.1, 0.1)])[-1]
    assert low.saturation == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "saturation, expected",
    [
        ((1.0, 0.0, 0.0), [0.7, 1.6, 0.9, 0.8]),
        ((1.0, 1.0, 0.0), [0.7, 1.2, 1.3, 0.8]),
        ((1.0, 1.0, 1.0), [0.7, 1.2, 0.9, 1.2]),
        ((0.0, 0.5, 0.0), [1.1, 1.0, 1.1, 0.8]),
    ],
)
def test_a_saturated_region_hands_its_weight_to_the_next(saturation, expected):
    shifted = shift(WEIGHTS, FeedbackState(saturation=saturation), SETTINGS)
    torch.testing.assert_close(shifted, torch.tensor(expected, dtype=torch.float64))


def test_shifted_weights_stay_within_floor_and_ceiling():
    settings = WeightsConfig(feedback_shift=5.0, w_min=0.5, w_max=1.5)
    assert shift(WEIGHTS, FeedbackState(saturation=(1.0, 0.0, 1.0)), settings).tolist() == [0.5, 1.5, 0.5, 1.5]


def test_every_response_is_shifted_by_itself_and_the_input_stays():
    rows = torch.stack([WEIGHTS, WEIGHTS.flip(0)])
    kept, state = rows.clone(), FeedbackState(saturation=(0.8, 0.3, 0.1))
    shifted = shift(rows, state, SETTINGS)
    assert torch.equal(shifted, torch.stack([shift(row, state, SETTINGS) for row in rows]))
    assert torch.equal(rows, kept)


def test_a_region_saturates_at_its_target_at_the_rate_given():
    states = run([(0.95, 0.2, 0.1)] * 12)
    assert [s.saturation[0] for s in states[:10]] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert states[-1].saturation[0] == 1.0


def test_a_plateau_below_the_target_saturates_after_the_patience():
    rise = [(0.0, x / 40, 0.0) for x in range(25)]
    states = run(rise + [(0.0, 0.6, 0.0)] * 200)
    region = Region.TOOL_NAME
    assert all(s.saturation[region] == 0.0 for s in states[:25])
    assert states[-1].saturation[region] == 1.0
    assert max(s.accuracy[region] for s in states) < SETTINGS.feedback_target
    first = next(i for i, s in enumerate(states) if s.saturation[region] > 0)
    best = states[first].best[region]
    reached = next(i for i, s in enumerate(states) if s.best[region] == best)
    assert first - reached == SETTINGS.feedback_patience


def test_slow_but_steady_progress_does_not_saturate():
    states = run([(0.1 + t / 1000, 0.0, 0.0) for t in range(500)])
    assert all(s.saturation[Region.FORMAT] == 0.0 for s in states)


def test_an_accuracy_that_falls_back_takes_its_weight_back():
    states = run([(1.0, 0.3, 0.3)] * 30)
    assert states[-1].saturation[Region.FORMAT] == 1.0
    fallen = run([(0.4, 0.3, 0.3)] * 40, state=states[-1])
    assert min(s.saturation[Region.FORMAT] for s in fallen) == 0.0
    weights = torch.stack([shift(WEIGHTS, s, SETTINGS) for s in [states[-1], *fallen]])
    assert weights[0, 0] == pytest.approx(0.7)
    assert weights[:, 0].max().item() == pytest.approx(1.1)


def test_a_small_dip_below_the_best_is_not_a_fall():
    states = run([(0.8, 0.0, 0.0)] * 60 + [(0.77, 0.0, 0.0)] * 60)
    assert states[59].saturation[Region.FORMAT] == states[-1].saturation[Region.FORMAT] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_on_a_training_curve_weight_wanders_from_format_to_thought(seed):
    states = run(learning_curve(300, seed))
    when = {r: next(i for i, s in enumerate(states) if s.saturation[r] == 1.0) for r in range(3)}
    assert when[Region.FORMAT] < when[Region.TOOL_NAME] < when[Region.PARAMETERS]
    shifted = shift(WEIGHTS, states[-1], SETTINGS)
    torch.testing.assert_close(shifted, torch.tensor([0.7, 1.2, 0.9, 1.2], dtype=torch.float64))


@pytest.mark.parametrize("settings", [SETTINGS, WeightsConfig(feedback_shift=2.0, feedback_rate=0.3)])
def test_any_accuracies_give_bounded_weights_that_change_smoothly(settings):
    rng = random.Random(0)
    state, weights = FeedbackState(), shift(WEIGHTS, FeedbackState(), settings)
    largest = 0.0
    for _ in range(2000):
        accuracy = [rng.choice([None, 0.0, 1.0, rng.random()]) for _ in range(3)]
        state = update_feedback(state, accuracy, settings)
        assert all(0.0 <= s <= 1.0 for s in state.saturation)
        last, weights = weights, shift(WEIGHTS, state, settings)
        assert ((weights >= settings.w_min) & (weights <= settings.w_max)).all()
        largest = max(largest, (weights - last).abs().max().item())
    assert 0.0 < largest <= 2 * settings.feedback_shift * settings.feedback_rate + 1e-12


def test_a_step_that_measured_nothing_changes_nothing():
    state = run(learning_curve(100))[-1]
    assert update_feedback(state, NOTHING, SETTINGS) == state
    partly = update_feedback(state, (None, 0.5, None), SETTINGS)
    for name, values in partly.to_dict().items():
        assert [values[0], values[2]] == [state.to_dict()[name][0], state.to_dict()[name][2]]


@pytest.mark.parametrize("cut", [0, 1, 77, 150])
def test_a_state_from_json_goes_on_exactly(cut):
    curve = learning_curve(200)
    whole = run(curve)
    saved = whole[cut - 1] if cut else FeedbackState()
    resumed = FeedbackState.from_dict(json.loads(json.dumps(saved.to_dict())))
    assert resumed == saved
    assert run(curve[cut:], state=resumed) == whole[cut:]


@pytest.mark.parametrize(
    "saved", [{}, {**FeedbackState().to_dict(), "extra": [0, 0, 0]}, {**FeedbackState().to_dict(), "stale": [0, 0]}]
)
def test_a_dictionary_that_is_no_state_is_refused(saved):
    with pytest.raises(ValueError, match="3 values"):
        FeedbackState.from_dict(saved)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_an_accuracy_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match="tool_name"):
        update_feedback(FeedbackState(), (0.5, bad, None), SETTINGS)


def test_metrics_name_the_regions_that_have_been_measured():
    assert FeedbackState().metrics() == {}
    state = run([(1.0, None, 0.2)])[-1]
    assert state.metrics() == {"saturation/format": 0.1, "saturation/parameters": 0.0}
