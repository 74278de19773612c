"""One step's optimizer updates, and what is measured beside them."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.microbatch import PolicyStreams
from rest_megatron.actor.variance import gradient_variance
from rest_megatron.batch import Batch, MiniBatch
from rest_megatron.method.aggregation import loss_weights
from rest_megatron.observe.regions import clipped_tokens, region_metrics, region_totals, token_ratios
from rest_megatron.session import Session


def update(session: Session, batch: Batch, streams: PolicyStreams) -> tuple[Tensor, dict[str, float]]:
    """All epochs over all mini-batches. `streams.loss_weights` are the token weights, not yet normalised.

    Returns log_probs [T] under the weights each token was last trained from, and the mean of the updates' metrics ({}
    for a batch without answers, in which case no step is taken).
    """
    log_probs = streams.old_log_probs.clone()
    metrics: list[dict[str, float]] = []
    for _ in range(session.config.train.epochs):
        for part in batch.mini_batches:
            mine = streams.select(part.tokens)
            normalised = mine._replace(loss_weights=_normalised(session, batch, part, mine.loss_weights))
            done = session.actor.update(batch.trajectories[part.sequences], normalised)
            read = _read(session, normalised.loss_weights)
            log_probs[part.tokens] = torch.where(read, done.log_probs, mine.old_log_probs)
            metrics.append(done.metrics)
    return log_probs, {name: sum(m[name] for m in metrics) / len(metrics) for name in (metrics[0] if metrics else ())}


def _read(session: Session, loss_weights: Tensor) -> Tensor:
    """bool [T]: the tokens an update gives a log-prob for. A ratio of whole answers needs all of them."""
    return (loss_weights != 0) | (session.config.algorithm.ratio == "sequence")


def _normalised(session: Session, batch: Batch, part: MiniBatch, weights: Tensor) -> Tensor:
    """Weights over the mini-batch's normaliser, summed over all micro-batches and ranks."""
    total_weight = weights.double().sum()
    dist.all_reduce(total_weight, group=session.parallel.dp_group)
    if total_weight == 0:  # nothing to learn from: every token is switched off
        return torch.zeros_like(weights)
    return loss_weights(
        weights,
        batch.sequence_index[part.tokens] - part.sequences.start,
        part.num_sequences_global,
        session.config.algorithm.loss_aggregation,
        float(total_weight),
        session.config.rollout.max_new_tokens,
    )


def measure_gradient_variance(
    session: Session, batch: Batch, streams: PolicyStreams, num_groups: int
) -> dict[str, float]:
    """Variance of the groups' gradients with the step's token weights and with uniform ones, on the same answers."""
    variances = group_gradient_variances(session, batch, streams, num_groups)
    metrics = {
        f"gradient_variance/{name}/{what}": value
        for name, numbers in variances.items()
        for what, value in numbers.items()
        if what != "groups"
    }
    ours, uniform = (variances[name]["relative"] for name in ("weights", "uniform"))
    return metrics | {"gradient_variance/relative_to_uniform": ours / uniform if math.isfinite(uniform) else math.nan}


def group_gradient_variances(
    session: Session, batch: Batch, streams: PolicyStreams, num_groups: int
) -> dict[str, dict[str, float]]:
    """`GradientVariance` of each weighting, by name: weights and uniform."""
    whole = MiniBatch(slice(0, len(batch.trajectories)), slice(None), _total(session, len(batch.trajectories)))
    found = {}
    for name, weights in (("weights", streams.loss_weights), ("uniform", torch.ones_like(streams.loss_weights))):
        normalised = streams._replace(loss_weights=_normalised(session, batch, whole, weights))
        measured = gradient_variance(session.actor, batch.trajectories, batch.group_index, num_groups, normalised)
        found[name] = measured.to_dict()
    return found


def _total(session: Session, number: int) -> int:
    """The sum of a number over data-parallel ranks."""
    total = torch.tensor(number, device=session.parallel.device)
    dist.all_reduce(total, group=session.parallel.dp_group)
    return int(total)


def region_update_metrics(
    session: Session, batch: Batch, streams: PolicyStreams, log_probs: Tensor
) -> dict[str, float]:
    """Weight mass, ratio and clip fraction of each region's tokens in the updates."""
    totals = region_totals(
        batch.regions,
        streams.loss_weights,
        streams.old_log_probs,
        log_probs,
        batch.advantages,
        session.config.algorithm,
        batch.sequence_index,
    )
    dist.all_reduce(totals, group=session.parallel.dp_group)
    return region_metrics(totals)


def token_vectors(
    session: Session, batch: Batch, streams: PolicyStreams, entropy: Tensor, log_probs: Tensor
) -> dict[int, dict[str, list]]:
    """What the dump tells of every token, by the answer's number among those trained on; from all ranks, on all."""
    ratio_of = (session.config.algorithm, batch.sequence_index)
    vectors = {
        "regions": batch.regions,
        "entropy": entropy,
        "weights": streams.loss_weights,
        "ratio": token_ratios(streams.old_log_probs, log_probs, *ratio_of),
        "clipped": clipped_tokens(streams.old_log_probs, log_probs, batch.advantages, *ratio_of),
    }
    parts = {name: vector.cpu().split(batch.lengths) for name, vector in vectors.items()}
    mine = {
        index: {name: part[i].tolist() for name, part in parts.items()} for i, index in enumerate(batch.sample_index)
    }
    gathered = session.parallel.gather_over_data_parallel(mine)
    return {index: values for part in gathered for index, values in part.items()}
