"""One step's optimizer updates, and what is measured beside them."""

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.variance import gradient_variance, mean_error
from rest_megatron.method.aggregation import loss_weights
from rest_megatron.method.importance import importance_ratios
from rest_megatron.observe.regions import clipped_tokens, region_metrics, region_totals, token_ratios
from rest_megatron.session import Session
from rest_megatron.step.nonfinite import SkipBudget
from rest_megatron.types import Batch, MiniBatch, PolicyStreams, TokenStats


@dataclass(frozen=True)
class LossInputs:
    """What the loss reads of a batch's tokens beside their advantages: [T] float32 each."""

    old_log_probs: Tensor
    """The actor's, before the step's updates."""
    weights: Tensor
    """The method's token weights."""
    importance: Tensor
    """Of `importance_ratios`."""
    ref_log_probs: Tensor | None
    """The initial policy's; None without a KL term."""

    @property
    def corrected_weights(self) -> Tensor:
        """Token weights times importance; 0 where the weight is, whatever the importance."""
        return (self.weights * self.importance).masked_fill(self.weights == 0, 0.0)


def loss_inputs(session: Session, batch: Batch, old_log_probs: Tensor, weights: Tensor) -> LossInputs:
    """The vectors of a batch; old_log_probs and weights as in `LossInputs`. Collective."""
    algorithm = session.config.algorithm
    importance = importance_ratios(
        old_log_probs,
        batch.rollout_log_probs,
        batch.sequence_index,
        len(batch.trajectories),
        algorithm.importance_cap,
        algorithm.importance_mask,
    )
    return LossInputs(old_log_probs, weights, importance, session.actor.ref_log_probs(batch.trajectories))


def update(
    session: Session, batch: Batch, inputs: LossInputs, skips: SkipBudget, step: int
) -> tuple[Tensor, dict[str, float]]:
    """All epochs over all mini-batches; one whose tokens all weigh 0 is passed over.

    A run that is asked to stop does so in the first of them, or after all: there is no way back to where a step began.
    Returns log_probs [T] float32 under the weights each token was last trained from (its old one where it was not
    read), and the mean of the updates' metrics, {} when no step was taken. Raises NonFiniteError as `skips` does.
    """
    log_probs = inputs.old_log_probs.clone()
    metrics: list[dict[str, float]] = []
    for number, part in enumerate(batch.mini_batches * session.config.train.epochs):
        streams = _streams(session, batch, part, inputs)
        if streams is None:
            session.actor.skip(1)
            continue
        trajectories = batch.trajectories[part.sequences]
        done = session.actor.update(trajectories, streams, interruptible=number == 0)
        skips.count(step, done.metrics, trajectories, streams)
        log_probs[part.tokens] = done.log_probs
        if session.config.algorithm.ratio == "token":  # otherwise tokens of weight 0 are read, too
            unread = streams.loss_weights == 0
            log_probs[part.tokens] = torch.where(unread, streams.old_log_probs, done.log_probs)
        metrics.append(done.metrics)
    if not metrics:
        return log_probs, {}
    skipped = sum(not math.isfinite(m["actor/grad_norm"]) for m in metrics)
    means = {name: sum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
    return log_probs, means | {"actor/skipped_updates": float(skipped)}


def _streams(session: Session, batch: Batch, part: MiniBatch, inputs: LossInputs) -> PolicyStreams | None:
    """A mini-batch's vectors, weights over their normaliser; None where all ranks' corrected weights are 0.

    The normaliser is that of the weights alone: over the corrected weights' sum the estimate would be biased.
    """
    weights, corrected = inputs.weights[part.tokens], inputs.corrected_weights[part.tokens]
    totals = torch.stack([weights.double().sum(), corrected.double().sum()])
    dist.all_reduce(totals, group=session.parallel.dp_group)
    total_weight, total_corrected = totals.tolist()
    if total_corrected == 0:
        return None
    normalised = loss_weights(
        corrected,
        batch.sequence_index[part.tokens] - part.sequences.start,
        part.num_sequences_global,
        session.config.algorithm.loss_aggregation,
        total_weight,
        session.config.rollout.max_new_tokens,
    )
    reference = inputs.ref_log_probs
    return PolicyStreams(
        inputs.old_log_probs[part.tokens],
        batch.advantages[part.tokens],
        normalised,
        None if reference is None else reference[part.tokens],
    )


def gradient_variances(
    session: Session, batch: Batch, num_groups: int, inputs: LossInputs
) -> dict[str, dict[str, float]]:
    """`GradientVariance` of the groups' gradients on the same answers, with the step's "weights" and "uniform" ones.

    {} when nothing has any weight. That of "weights" also has difference_error: the standard error of the difference
    between the two variances, from the differences of |g_i|^2 within each group.
    """
    num_sequences = sum(part.num_sequences_global for part in batch.mini_batches)
    whole = MiniBatch(slice(0, len(batch.trajectories)), slice(0, len(inputs.weights)), num_sequences)
    measured = []
    for own in (inputs, replace(inputs, weights=torch.ones_like(inputs.weights))):
        streams = _streams(session, batch, whole, own)
        if streams is None:
            return {}
        measured.append(gradient_variance(session.actor, batch.trajectories, batch.group_index, num_groups, streams))
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


def region_update_metrics(session: Session, batch: Batch, inputs: LossInputs, log_probs: Tensor) -> dict[str, float]:
    """Share of the corrected weight, ratio and clip fraction of each region's tokens in the updates."""
    totals = region_totals(
        batch.regions,
        inputs.corrected_weights,
        inputs.old_log_probs,
        log_probs,
        batch.advantages,
        session.config.algorithm,
        batch.sequence_index,
    )
    dist.all_reduce(totals, group=session.parallel.dp_group)
    return region_metrics(totals)


def token_vectors(
    session: Session, batch: Batch, old: TokenStats, inputs: LossInputs, log_probs: Tensor
) -> dict[int, dict[str, list]]:
    """What the dump tells of every token, by the answer's number among those trained on. All answers' on rank 0."""
    ratio_of = (session.config.algorithm, batch.sequence_index)
    vectors = {
        "regions": batch.regions,
        "entropy": old.entropy,
        "weights": inputs.weights,
        "importance": inputs.importance,
        "ratio": token_ratios(old.log_probs, log_probs, *ratio_of),
        "clipped": clipped_tokens(old.log_probs, log_probs, batch.advantages, *ratio_of),
    }
    parts = {name: vector.cpu().split(batch.lengths) for name, vector in vectors.items()}
    mine = {
        index: {name: part[i].tolist() for name, part in parts.items()} for i, index in enumerate(batch.sample_index)
    }
    gathered = session.parallel.gather_to_main(mine)
    return {index: values for part in gathered for index, values in part.items()}
