"""Which steps need no log-probs before their update."""

from types import SimpleNamespace

import pytest
import torch

from rest_megatron.config import load
from rest_megatron.method.measured import MeasuredRegions
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import WeightState
from rest_megatron.step import weigh
from rest_megatron.step.on_policy import needs_no_log_probs

FROZEN = WeightState(running_mean=(0.1, 0.2, 0.3, 0.4), steps=(3, 3, 3, 3))
UNSEEN = WeightState(running_mean=(0.1, 0.2, float("nan"), 0.4), steps=(3, 3, 0, 3))
YOUNG = WeightState(running_mean=(0.1, 0.2, 0.3, 0.4), steps=(3, 3, 2, 3))
SEEN = (Region.FORMAT, Region.TOOL_NAME, Region.COT)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One data-parallel rank."""
    monkeypatch.setattr(weigh.dist, "all_reduce", lambda tensor, group: None)


@pytest.mark.parametrize(
    "overrides, state, regions, mini_batches, wanted",
    [
        ((), FROZEN, Region, 1, True),
        (("algorithm.old_log_probs=recompute",), FROZEN, Region, 1, False),
        ((), WeightState(), Region, 1, False),
        ((), YOUNG, Region, 1, False),
        ((), YOUNG, SEEN, 1, True),  # the young region is not in this step
        ((), UNSEEN, Region, 1, False),
        ((), UNSEEN, SEEN, 1, True),
        ((), FROZEN, Region, 0, False),  # nothing to train on
        (("method.preset=grpo",), FROZEN, Region, 1, True),
        (("weights.preset=reference",), WeightState(), Region, 1, True),
        (("train.gradient_variance_interval=6",), FROZEN, Region, 1, False),
        (("train.gradient_variance_interval=5",), FROZEN, Region, 1, True),
        (("weights.rule=measured",), FROZEN, Region, 1, False),
        (
            ("weights.rule=measured",),
            WeightState(
                FROZEN.running_mean, FROZEN.steps, measured=MeasuredRegions((1.0,) * 4, (1.0,) * 4, (0.0,) * 4)
            ),
            Region,
            1,
            True,
        ),
    ],
)
def test_the_log_prob_pass_is_left_out_where_weights_stand_still_and_nothing_else_is_measured(
    overrides, state, regions, mini_batches, wanted
):
    config = load((), ("algorithm.old_log_probs=update", *overrides))
    session = SimpleNamespace(config=config, parallel=SimpleNamespace(dp_group=None))
    batch = SimpleNamespace(regions=torch.tensor([*regions]), mini_batches=[None] * mini_batches, num_groups=8)
    assert needs_no_log_probs(session, batch, SimpleNamespace(step=5, weights=state)) is wanted
