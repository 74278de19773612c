"""One step's optimizer updates, and what is measured of its gradients before them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rest_megatron.config.schema import Config
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.batch import mini_batch_borders
from rest_megatron.step.gradients import (
    gradient_variance_metrics,
    gradient_variances,
    measured_regions,
    measurement_due,
    variance_due,
)
from rest_megatron.step.nonfinite import count_skipped
from rest_megatron.step.streams import normalised, policy_streams
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, Experience, PolicyStreams, TokenStats


class StepUpdates(NamedTuple):
    """All updates of a step."""

    metrics: dict[str, float]
    """Means of the updates', without those of the loss when no update was made; and what was measured before them."""
    log_probs: Tensor
    """[T] float32: under the weights each token was last trained from, its old one where it was not read."""
    loss_weights: Tensor
    """[T] float32: of each token in its mini-batch's loss; 0 in one that was passed over."""


def planned_updates(config: Config) -> int:
    """Optimizer steps of a training step that trains on all of its answers."""
    return config.train.epochs * (len(mini_batch_borders(config, config.rollout.prompts_per_step)) - 1)


def update(
    session: Session, experience: Experience, batch: Batch, old: TokenStats, weights: StepWeights, state: RunState
) -> StepUpdates:
    """The updates of the step after state.step: all epochs over all mini-batches. Collective.

    Measured before them: every train.gradient_variance_interval steps what the weights do to the gradient, and with
    weights.rule=measured the regions' signal and noise, which the weights of later steps follow. Raises NonFiniteError
    as `count_skipped` does.
    """
    streams, step = policy_streams(session, batch, old, weights), state.step + 1
    metrics = {}
    if variance_due(batch, step, session.config.train):
        metrics = gradient_variance_metrics(gradient_variances(session, experience, batch, streams, weights))
    if measurement_due(state.weights, step, session.config.weights):
        state.weights, found = measured_regions(session, batch, streams, weights, state.weights)
        metrics |= found
    done = _update(session, batch, streams, weights, state)
    session.actor.skip(planned_updates(session.config) - len(batch.mini_batches) * session.config.train.epochs)
    return done._replace(metrics=metrics | done.metrics)


def _update(
    session: Session, batch: Batch, streams: PolicyStreams, weights: StepWeights, state: RunState
) -> StepUpdates:
    """The updates themselves; a mini-batch whose tokens all weigh 0 is passed over.

    A run that is to stop does so in the first of them, or after all: there is no way back to where a step began.
    """
    parts = [(part, normalised(session, batch, part, streams, weights)) for part in batch.mini_batches]
    log_probs, loss_weights = streams.old_log_probs.clone(), torch.zeros_like(streams.loss_weights)
    for part, own in parts:
        if own is not None:
            loss_weights[part.tokens] = own.loss_weights
    metrics: list[dict[str, float]] = []
    for number, (part, own) in enumerate(parts * session.config.train.epochs):
        if own is None:
            session.actor.skip(1)
            continue
        trajectories = batch.trajectories[part.sequences]
        done = session.actor.update(trajectories, own, interruptible=number == 0)
        count_skipped(session, state, state.step + 1, done.metrics, trajectories, own)
        log_probs[part.tokens] = done.log_probs
        metrics.append(done.metrics)
    return StepUpdates(mean_metrics(metrics), log_probs, loss_weights)


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Of a step's updates, each metric over those that have it; {} without an update."""
    if not metrics:
        return {}
    skipped = sum(not math.isfinite(m["actor/grad_norm"]) for m in metrics)
    found: dict[str, list[float]] = {}
    for own in metrics:
        for name, value in own.items():
            found.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means | {"actor/skipped_updates": float(skipped)}
