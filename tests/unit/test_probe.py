"""The probe's verdict: the numbers that stop a run, and those that do not."""

import math

import pytest

from rest_megatron.errors import EngineError
from rest_megatron.rollout.engine import Sample
from rest_megatron.rollout.probe import compare


def samples(*log_probs):
    return [Sample((1, 2), (3,) * len(values), tuple(values), "length", 0) for values in log_probs]


def test_differences_up_to_the_tolerance_pass():
    compare(samples([-1.0, -2.0], [-3.0]), [-1.001, -2.0, -2.999], 1, tolerance=0.001)


@pytest.mark.parametrize(
    "ours, mean, largest",
    [
        ([-1.1, -2.0, -3.0], "0.0333", "0.1"),
        ([-1.0, -2.0, -3.5], "0.167", "0.5"),
        ([-1.0, math.nan, -3.0], "nan", "nan"),
        ([-math.inf, -2.0, -3.0], "inf", "inf"),
    ],
)
def test_a_larger_or_unknown_mean_stops_the_run_with_its_numbers(ours, mean, largest):
    with pytest.raises(EngineError) as raised:
        compare(samples([-1.0, -2.0], [-3.0]), ours, 12, tolerance=0.001)
    text = str(raised.value)
    assert "after the update to version 12" in text
    assert f"by {mean} on average (at most {largest})" in text
    assert "over 3 tokens of 2 answers" in text and "at most 0.001 (rollout.probe_tolerance)" in text
    assert "tokens [3, 3], vLLM [-1.0, -2.0]" in text
