"""The probe's verdict: the numbers that stop a run, and those that do not."""

import logging
import math
from types import SimpleNamespace

import pytest

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.probe import Probe, compare
from rest_megatron.types import Sample

FEW = (-1.0, -2.0, -3.0)
MANY = (-1.0,) * 64


class Alone(SimpleNamespace):
    """A run of one rank."""

    rank = 0

    def on_main(self, function):
        return function()


def samples(*log_probs):
    return [Sample((1, 2), (3,) * len(values), tuple(values), "length", 0) for values in log_probs]


def checked(first, second=None) -> bool:
    """Whether more answers were asked for. first, second: the actor's log-probs where vLLM's are FEW and MANY."""
    asked, ours = [], [first, second]
    probe = Probe.__new__(Probe)
    probe._actor, probe._tolerance = SimpleNamespace(parallel=Alone()), 0.001
    probe._log_probs = lambda trajectories: SimpleNamespace(tolist=lambda: ours.pop(0))
    probe.check(samples(FEW[:2], FEW[2:]), lambda: asked.append(1) or samples(MANY), 12)
    return bool(asked)


def test_differences_up_to_the_tolerance_pass_at_once():
    assert not checked([-1.001, -2.0, -2.999])


@pytest.mark.parametrize("outlier", [-3.5, math.nan, -math.inf])
def test_an_outlier_among_few_tokens_is_looked_at_again_and_told(outlier, caplog):
    with caplog.at_level(logging.WARNING):
        assert checked([-1.0, -2.0, outlier], MANY)
    assert "over 3 tokens, but by 0 on average (at most 0) over 64 tokens" in caplog.text


@pytest.mark.parametrize(
    "ours, mean, largest",
    [
        ([-1.1, -2.0, -3.0], "0.0333", "0.1"),
        ([-1.0, -2.0, -3.5], "0.167", "0.5"),
        ([-1.0, math.nan, -3.0], "nan", "nan"),
        ([-math.inf, -2.0, -3.0], "inf", "inf"),
    ],
)
@pytest.mark.parametrize("again, said", [(-1.002, "0.002"), (math.nan, "nan")])
def test_a_mean_that_is_too_large_twice_or_unknown_stops_the_run_with_both(ours, mean, largest, again, said):
    with pytest.raises(EngineError) as raised:
        checked(ours, [again] * 64)
    text = str(raised.value)
    assert "after the update to version 12" in text
    assert f"by {mean} on average (at most {largest}) over 3 tokens, and by {said} on average (at most {said})" in text
    assert "over 64 tokens" in text and "at most 0.001 (rollout.probe_tolerance)" in text
    assert "tokens [3, 3], vLLM [-1.0, -2.0]" in text


def test_a_comparison_is_over_the_tokens_of_all_answers():
    found = compare(samples([-1.0, -2.0], [-3.0]), [-1.0, -2.0, -3.3])
    assert (round(found.mean, 6), round(found.largest, 6), found.tokens) == (0.1, 0.3, 3)
