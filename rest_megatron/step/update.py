"""One step's optimizer updates, and how much gradient variance their weights save."""

import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.actor import Update
from rest_megatron.actor.variance import gradient_variance, mean_error
from rest_megatron.config.schema import Config
from rest_megatron.method.aggregation import loss_weights
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.nonfinite import count_skipped
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, MiniBatch, PolicyStreams, TokenStats


def planned_updates(config: Config) -> int:
    """Optimizer steps of a training step that trains on all of its answers."""
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    return config.train.epochs * -(-answers // (config.train.mini_batch_size or answers))


def update(session: Session, batch: Batch, old: TokenStats, weights: StepWeights, state: RunState) -> Update:
    """The updates of the step after state.step: all epochs over all mini-batches. Collective.

    The metrics are the mean of the updates', without those of the loss when no update was made, and every
    train.gradient_variance_interval steps the gradient's variance before them. log_probs [T] float32: under the weights
    each token was last trained from, its old one where it was not read. Raises NonFiniteError as `count_skipped` does.
    """
    streams, interval = policy_streams(session, batch, old, weights), session.config.train.gradient_variance_interval
    metrics = {}
    if interval and (state.step + 1) % interval == 0 and batch.num_groups > 1:
        metrics = gradient_variance_metrics(gradient_variances(session, batch, streams, weights))
    done = _update(session, batch, streams, weights, state)
    session.actor.skip(planned_updates(session.config) - len(batch.mini_batches) * session.config.train.epochs)
    return Update(metrics | done.metrics, done.log_probs)


def policy_streams(session: Session, batch: Batch, old: TokenStats, weights: StepWeights) -> PolicyStreams:
    """What the loss reads of the whole batch, weights without their normaliser. Collective."""
    reference = session.actor.ref_log_probs(batch.trajectories)
    return PolicyStreams(old.log_probs, batch.advantages, weights.corrected, reference)


def _update(session: Session, batch: Batch, streams: PolicyStreams, weights: StepWeights, state: RunState) -> Update:
    """The updates themselves; a mini-batch whose tokens all weigh 0 is passed over.

    A run that is to stop does so in the first of them, or after all: there is no way back to where a step began.
    """
    log_probs = streams.old_log_probs.clone()
    metrics: list[dict[str, float]] = []
    for number, part in enumerate(batch.mini_batches * session.config.train.epochs):
        own = _normalised(session, batch, part, streams, weights)
        if own is None:
            session.actor.skip(1)
            continue
        trajectories = batch.trajectories[part.sequences]
        done = session.actor.update(trajectories, own, interruptible=number == 0)
        count_skipped(session, state, state.step + 1, done.metrics, trajectories, own)
        log_probs[part.tokens] = done.log_probs
        if session.config.algorithm.ratio == "token":  # otherwise tokens of weight 0 are read, too
            log_probs[part.tokens] = torch.where(own.loss_weights == 0, own.old_log_probs, done.log_probs)
        metrics.append(done.metrics)
    return Update(_mean_metrics(metrics), log_probs)


def _mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    if not metrics:
        return {}
    skipped = sum(not math.isfinite(m["actor/grad_norm"]) for m in metrics)
    means = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
    return means | {"actor/skipped_updates": float(skipped)}


def _normalised(
    session: Session, batch: Batch, part: MiniBatch, streams: PolicyStreams, weights: StepWeights
) -> PolicyStreams | None:
    """A mini-batch's vectors, weights over their normaliser; None where all ranks' corrected weights are 0."""
    normalised = normalised_weights(session, batch, part, weights)
    return None if normalised is None else streams.select(part.tokens)._replace(loss_weights=normalised)


def normalised_weights(session: Session, batch: Batch, part: MiniBatch, weights: StepWeights) -> Tensor | None:
    """float32 [tokens of the mini-batch]: corrected weights over their normaliser; None where all ranks' are 0.

    The normaliser is that of the weights alone: over the corrected weights' sum the estimate would be biased.
    Collective.
    """
    plain, corrected = weights.tokens[part.tokens], weights.corrected[part.tokens]
    totals = torch.stack([plain.double().sum(), corrected.double().sum()])
    dist.all_reduce(totals, group=session.parallel.dp_group)
    total_weight, total_corrected = totals.tolist()
    if total_corrected == 0:
        return None
    return loss_weights(
        corrected,
        batch.sequence_index[part.tokens] - part.sequences.start,
        part.num_sequences_global,
        session.config.algorithm.loss_aggregation,
        total_weight,
        session.config.rollout.max_new_tokens,
    )


def gradient_variances(
    session: Session, batch: Batch, streams: PolicyStreams, weights: StepWeights
) -> dict[str, dict[str, float]]:
    """`GradientVariance` of the groups' gradients on the same answers, with the step's "weights" and "uniform" ones.

    {} when nothing has any weight. That of "weights" also has difference_error: the standard error of the difference
    between the two variances, from the differences of |g_i|^2 within each group.
    """
    num_sequences = sum(part.num_sequences_global for part in batch.mini_batches)
    whole = MiniBatch(slice(0, len(batch.trajectories)), slice(0, len(weights.tokens)), num_sequences)
    measured = []
    for arm in (weights, replace(weights, tokens=torch.ones_like(weights.tokens))):
        own = _normalised(session, batch, whole, streams, arm)
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
