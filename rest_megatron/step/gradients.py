"""What the gradients of a step's groups tell, before its updates: of the step's weights, and of each region."""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from rest_megatron.actor.comparison import ARMS, compare_gradients
from rest_megatron.actor.region_gradients import Measurement, measure_regions
from rest_megatron.config.schema import TrainConfig, WeightsConfig
from rest_megatron.method.measured import measured_weights
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import WeightState, region_weights
from rest_megatron.session import Session
from rest_megatron.step.streams import normalised, whole_batch
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, Experience, PolicyStreams


def gradient_variances(
    session: Session, experience: Experience, batch: Batch, streams: PolicyStreams, weights: StepWeights
) -> dict[str, dict[str, float]]:
    """`Comparison` of the groups' gradients on the same answers, with the step's "weights" and "uniform" ones.

    {} when nothing has any weight.
    """
    whole = whole_batch(batch)
    ours, uniform = (normalised(session, batch, whole, streams, arm) for arm in (weights, uniform_weights(weights)))
    if ours is None or uniform is None:
        return {}
    rewards = reward_factors(experience, batch) * weights.importance
    groups = (batch.trajectories, batch.group_index, batch.num_groups)
    return compare_gradients(session.actor, *groups, (ours, uniform), rewards).to_dict()


def reward_factors(experience: Experience, batch: Batch) -> Tensor:
    """[T] float32: what each token's log-prob is multiplied by in a group's gradient of the expected reward.

    The reward of the token's answer less its group's mean, over the answers of a group.
    """
    totals = experience.totals
    own = ((totals - totals.mean(dim=1, keepdim=True)) / totals.shape[1]).flatten()[batch.sample_index]
    return own.float().to(batch.sequence_index.device)[batch.sequence_index]


def gradient_variance_metrics(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The numbers as metrics, and the relative variance of the step's weights over that of uniform ones."""
    metrics = {
        "/".join(["gradient_variance", *([] if name == "together" else [name]), what]): value
        for name, numbers in found.items()
        for what, value in numbers.items()
        if what != "groups"
    }
    ours, uniform = (found.get(name, {}).get("relative", math.nan) for name in ARMS)
    comparable = math.isfinite(uniform) and uniform > 0
    return metrics | {"gradient_variance/relative_to_uniform": ours / uniform if comparable else math.nan}


def uniform_weights(weights: StepWeights) -> StepWeights:
    """The same, with weight 1 everywhere."""
    return replace(weights, tokens=torch.ones_like(weights.tokens))


def variance_due(batch: Batch, step: int, settings: TrainConfig) -> bool:
    """Whether the weights' gradients are compared in `step`, which counts from 1."""
    interval = settings.gradient_variance_interval
    return interval > 0 and step % interval == 0 and batch.num_groups > 1


def measurement_due(state: WeightState, step: int, settings: WeightsConfig) -> bool:
    """Whether the regions' gradients are measured in `step`, which counts from 1.

    First when the base weights stand still, or, where nothing could be measured then, in the next step that can.
    """
    first, every = max(1, settings.freeze_after), settings.measure_every
    if settings.rule != "measured" or step < first:
        return False
    return state.measured is None or (every > 0 and (step - first) % every == 0)


def measured_regions(
    session: Session, batch: Batch, streams: PolicyStreams, weights: StepWeights, state: WeightState
) -> tuple[WeightState, dict[str, float]]:
    """The state with each region's signal and noise, for the weights of the NEXT step, and what to log. Collective.

    The state stays what it was where no step has given Adam a second moment yet, or fewer than two groups of one half
    have a gradient.
    """
    started = time.perf_counter()
    own = normalised(session, batch, whole_batch(batch), streams, uniform_weights(weights))
    adam = session.config.weights.measured_metric == "adam"
    found = None if own is None else measure_regions(session.actor, batch, own, adam)
    if found is None:
        return state, {}
    metrics = measurement_metrics(found, state, session.config.weights)
    return replace(state, measured=found.regions), metrics | {"time/measure": time.perf_counter() - started}


def measurement_metrics(found: Measurement, state: WeightState, settings: WeightsConfig) -> dict[str, float]:
    """The numbers as metrics, and the region weights that follow from them, before curriculum and switches.

    state: of the step, whose running mean gives the rule's weights.
    """
    base = region_weights(torch.tensor(state.running_mean, dtype=torch.float64), settings)
    weights = measured_weights(base, found.regions, settings).tolist()
    metrics = {
        f"measured/{name}/{region.label}": values[region]
        for name, values in {**found.regions.to_dict(), "weight": weights}.items()
        for region in Region
    }
    return metrics | {"measured/cost": found.cost}
