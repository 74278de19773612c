"""The default weights over a run of the quickstart: format falls, parameters and reasoning rise (Section 3.2.2)."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.curriculum import scheduled_weights
from rest_megatron.method.means import mean_by
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import WeightState, token_weights, update_running_mean
from tests.paths import ROOT

RUNS = ROOT / "tests" / "fixtures" / "base-weights"
NAMES = [region.label for region in Region]
DEFAULT = WeightsConfig()


def steps(seed: int) -> list[dict]:
    """The regions' metrics of a run, step by step."""
    return [json.loads(line) for line in (RUNS / f"seed-{seed}.jsonl").read_text().splitlines()]


def on_one_batch(rows: list[dict], settings: WeightsConfig) -> torch.Tensor:
    """[steps, 4]: mean token weight of each region, had every step of the run had the same answers."""
    counts = torch.tensor(json.loads((RUNS / "batch.json").read_text()))
    regions = torch.arange(len(Region)).repeat(len(counts)).repeat_interleave(counts.flatten())
    sequence_index = torch.arange(len(counts)).repeat_interleave(counts.sum(dim=1))
    state, found = WeightState(), []
    for row in rows:
        means = torch.tensor([row[f"entropy/{name}"] for name in NAMES], dtype=torch.float64)
        state = update_running_mean(state, means, torch.ones(4, dtype=torch.float64), settings)
        by_region = scheduled_weights(means.new_tensor(state.running_mean), row["progress"], state, settings)
        found.append(mean_by(regions, token_weights(by_region, regions, sequence_index, len(counts)), len(Region)))
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(3))
def test_over_a_run_format_s_mean_weight_falls_and_that_of_parameters_and_reasoning_rises(seed):
    first, last = steps(seed)[0], steps(seed)[-1]
    assert last["weight/format"] < first["weight/format"] - 0.1
    assert last["weight/parameters"] > first["weight/parameters"] + 0.1
    assert last["weight/cot"] > first["weight/cot"] + 0.05


@pytest.mark.parametrize("seed", range(3))
def test_on_one_batch_format_never_gains_and_parameters_never_lose_once_the_base_stands_still(seed):
    frozen = on_one_batch(steps(seed), DEFAULT)[DEFAULT.freeze_after - 1 :]
    changes = [later - earlier for earlier, later in pairwise(frozen)]
    assert all(change[Region.FORMAT] < 0 < change[Region.PARAMETERS] for change in changes)
    assert all(change[Region.COT] > 0 for change in changes)


@pytest.mark.parametrize("seed", range(3))
def test_a_moving_base_outruns_the_curriculum(seed):
    moving = on_one_batch(steps(seed), replace(DEFAULT, freeze_after=0))
    assert moving[-1, Region.PARAMETERS] < moving[0, Region.PARAMETERS]
    assert moving[-1, Region.FORMAT] > on_one_batch(steps(seed), DEFAULT)[-1, Region.FORMAT] + 0.1
