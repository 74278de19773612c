"""`rest_megatron.reward.poster`: the poster's formula."""

import pytest

from rest_megatron.config import load
from rest_megatron.reward.presets import build_reward

CALL = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
WRONG_VALUE = CALL.replace("1", "2")  # S_acc = 2/3
NO_THOUGHT = CALL.removeprefix("<think> t </think>\n")  # S_format = 0, S_acc = 1


def scored(response: str, progress: float, *overrides: str):
    reward = build_reward(load([], ["reward.preset=poster", *overrides]))
    return reward.score(response.encode(), reward.read(CALL), progress=progress, step=999)


@pytest.mark.parametrize(
    "response, progress, form, correctness",
    [
        (CALL, 0.0, 0, 3),
        (CALL, 0.25, 0.25, 2.25),
        (CALL, 1.0, 1, 0),
        (WRONG_VALUE, 0.25, 0.25, 1.5),
        (NO_THOUGHT, 0.25, 0, 2.25),
        ("", 0.25, 0, 0),
    ],
)
def test_accuracy_fades_and_format_grows(response, progress, form, correctness):
    result = scored(response, progress)
    assert (result.format, result.correctness) == pytest.approx((form, correctness))
    assert result.total == result.format + result.correctness


def test_the_betas_scale_their_terms():
    result = scored(WRONG_VALUE, 0.5, "reward.beta_accuracy=6", "reward.beta_format=0.5")
    assert (result.format, result.correctness) == pytest.approx((0.25, 2))


def test_without_a_ramp_the_end_of_the_run_counts():
    assert scored(WRONG_VALUE, 0.25, "reward.ramp=none").total == scored(WRONG_VALUE, 1.0).total == 1.0


def test_parts_and_reason_are_those_of_paper():
    paper = build_reward(load())
    for response in (CALL, WRONG_VALUE, NO_THOUGHT, "", "junk " + CALL):
        result, other = scored(response, 0.5), paper.score(response.encode(), paper.read(CALL), progress=0.5, step=0)
        assert (result.parts, result.reason) == (other.parts, other.reason)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_outside_its_range_is_refused(progress):
    with pytest.raises(ValueError, match="progress"):
        scored(CALL, progress)
