"""What the gradients of a step's groups tell, before its updates: their variance, and what each region has in them."""

import math
import time
from dataclasses import replace

import torch

from rest_megatron.actor.region_gradients import measure_regions
from rest_megatron.actor.variance import gradient_variance, mean_error
from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import WeightState
from rest_megatron.session import Session
from rest_megatron.step.streams import normalised, whole_batch
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, PolicyStreams


def gradient_variances(
    session: Session, batch: Batch, streams: PolicyStreams, weights: StepWeights
) -> dict[str, dict[str, float]]:
    """`GradientVariance` of the groups' gradients on the same answers, with the step's "weights" and "uniform" ones.

    {} when nothing has any weight. That of "weights" also has difference_error: the standard error of the difference
    between the two variances, from the differences of |g_i|^2 within each group.
    """
    whole = whole_batch(batch)
    measured = []
    for arm in (weights, uniform_weights(weights)):
        own = normalised(session, batch, whole, streams, arm)
        if own is None:
            return {}
        measured.append(gradient_variance(session.actor, batch.trajectories, batch.group_index, batch.num_groups, own))
    ours, uniform = measured
    error = mean_error([a - b for a, b in zip(ours.norms_squared, uniform.norms_squared, strict=True)])
    return {"weights": ours.to_dict() | {"difference_error": error}, "uniform": uniform.to_dict()}


def gradient_variance_metrics(variances: dict[str, dict[str, float]]) -> dict[str, float]:
    """The variances as metrics, and the relative one of the step's weights over that of uniform ones."""
    metrics = {
        f"gradient_variance/{name}/{what}": value
        for name, numbers in variances.items()
        for what, value in numbers.items()
        if what != "groups"
    }
    ours, uniform = (variances.get(name, {}).get("relative", math.nan) for name in ("weights", "uniform"))
    comparable = math.isfinite(uniform) and uniform > 0
    return metrics | {"gradient_variance/relative_to_uniform": ours / uniform if comparable else math.nan}


def uniform_weights(weights: StepWeights) -> StepWeights:
    """The same, with weight 1 everywhere."""
    return replace(weights, tokens=torch.ones_like(weights.tokens))


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

    The state stays what it was where no step has given Adam a second moment yet, or fewer than four groups have a
    gradient.
    """
    started = time.perf_counter()
    own = normalised(session, batch, whole_batch(batch), streams, uniform_weights(weights))
    adam = session.config.weights.measured_metric == "adam"
    found = None if own is None else measure_regions(session.actor, batch, own, adam)
    if found is None:
        return state, {}
    metrics = {
        f"measured/{name}/{region.label}": values[region]
        for name, values in found.regions.to_dict().items()
        for region in Region
    }
    metrics |= {"measured/cost": found.cost, "time/measure": time.perf_counter() - started}
    return replace(state, measured=found.regions), metrics
