"""What a step's answers and its updates are like, as numbers by name."""

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.observe.lengths import length_bias
from rest_megatron.observe.mismatch import mismatch_metrics, version_metrics
from rest_megatron.observe.regions import clipped_tokens, region_metrics, region_totals, token_ratios
from rest_megatron.observe.rollouts import rollout_metrics
from rest_megatron.session import Session
from rest_megatron.step.score import reward_metrics
from rest_megatron.step.update import StepUpdates
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, Experience, TokenStats


def answer_metrics(session: Session, experience: Experience) -> dict[str, float]:
    """Rewards, lengths, versions and times of a step's answers, trained on or not. Before the updates."""
    times = {"publish": experience.publish_seconds, "rollout": experience.seconds, "reward": experience.reward_seconds}
    metrics = reward_metrics(experience.all_scores) | rollout_metrics(experience)
    metrics |= version_metrics(experience, session.actor.version)
    return metrics | {f"time/{name}": seconds for name, seconds in times.items()}


def measure(
    session: Session, experience: Experience, batch: Batch, old: TokenStats, weights: StepWeights, done: StepUpdates
) -> dict[str, float]:
    """Of a step: how even its deal, token weights, mismatch with the engine, length bias, updates and regions.

    Collective; the same on every rank.

    batch: this rank's share of the answers; old: their statistics before the updates; done: the step's updates.
    """
    group, algorithm = session.parallel.dp_group, session.config.algorithm
    metrics = load_metrics(session, batch) | weights.metrics()
    metrics |= mismatch_metrics(experience, batch, old.log_probs, algorithm, group)
    metrics |= length_bias_metrics(session, experience, batch, done.loss_weights)
    return metrics | done.metrics | region_update_metrics(session, batch, old.log_probs, weights, done.log_probs)


def load_metrics(session: Session, batch: Batch) -> dict[str, float]:
    """Tokens of the answers trained on with their prompts, those that one pass over them computes, and their deal.

    Collective.
    """
    asked = sum(trajectory.length for trajectory in batch.trajectories)
    totals = torch.tensor([asked, session.actor.tokens_computed(batch.trajectories)], device=session.parallel.device)
    dist.all_reduce(totals, group=session.parallel.dp_group)
    tokens, computed = totals.tolist()
    return {"load/imbalance": batch.imbalance, "load/tokens": tokens, "load/tokens_computed": computed}


def length_bias_metrics(
    session: Session, experience: Experience, batch: Batch, loss_weights: Tensor
) -> dict[str, float]:
    """`length_bias` of the answers that an epoch's losses read; {} where no answer is trained on. Collective.

    loss_weights: [T] float32, of each token in its mini-batch's loss.
    """
    trained = experience.trained
    if not trained:
        return {}
    absolute = (loss_weights * batch.advantages).abs().double()
    own = absolute.new_zeros(len(batch.trajectories)).index_add(0, batch.sequence_index, absolute)
    places = torch.tensor(batch.sample_index, dtype=torch.int64, device=own.device)
    # Every answer in its own place, so that the sums over all do not depend on where it is trained.
    totals = absolute.new_zeros(len(trained)).index_copy(0, places, own)
    dist.all_reduce(totals, group=session.parallel.dp_group)
    lengths = torch.tensor([sample.num_sampled for sample in trained])
    return length_bias(lengths, experience.advantages.flatten()[: len(trained)].cpu(), totals.cpu())


def region_update_metrics(
    session: Session, batch: Batch, old_log_probs: Tensor, weights: StepWeights, log_probs: Tensor
) -> dict[str, float]:
    """Share of the corrected weight, ratio and clip fraction of each region's tokens in the updates. Collective."""
    totals = region_totals(
        batch.regions,
        weights.corrected,
        old_log_probs,
        log_probs,
        batch.advantages,
        session.config.algorithm,
        batch.sequence_index,
    )
    dist.all_reduce(totals, group=session.parallel.dp_group)
    return region_metrics(totals)


def token_vectors(
    session: Session, batch: Batch, old: TokenStats, weights: StepWeights, done: StepUpdates
) -> dict[int, dict[str, list]]:
    """What is known of every token, by the answer's number among those trained on: of all answers on rank 0.

    Collective.
    """
    ratio_of = (session.config.algorithm, batch.sequence_index)
    vectors = {
        "regions": batch.regions,
        "entropy": old.entropy,
        "weights": weights.tokens,
        "importance": weights.importance,
        "ratio": token_ratios(old.log_probs, done.log_probs, *ratio_of),
        "clipped": clipped_tokens(old.log_probs, done.log_probs, batch.advantages, *ratio_of),
    }
    parts = {name: vector.cpu().split(batch.lengths) for name, vector in vectors.items()}
    mine = {
        index: {name: part[i].tolist() for name, part in parts.items()} for i, index in enumerate(batch.sample_index)
    }
    gathered = session.parallel.gather_to_main(mine)
    return {index: values for part in gathered for index, values in part.items()}
