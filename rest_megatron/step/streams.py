"""From token weights to the vectors that the policy loss reads."""

import torch
import torch.distributed as dist

from rest_megatron.method.aggregation import loss_weights
from rest_megatron.session import Session
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, MiniBatch, PolicyStreams, TokenStats


def policy_streams(session: Session, batch: Batch, old: TokenStats, weights: StepWeights) -> PolicyStreams:
    """What the loss reads of the whole batch, weights without their normaliser. Collective."""
    reference = session.actor.ref_log_probs(batch.trajectories)
    return PolicyStreams(old.log_probs, batch.advantages, weights.corrected, reference)


def normalised(
    session: Session, batch: Batch, part: MiniBatch, streams: PolicyStreams, weights: StepWeights
) -> PolicyStreams | None:
    """A mini-batch's vectors, corrected weights over their normaliser; None where all ranks' corrected ones are 0.

    The normaliser is that of the weights alone: over the corrected weights' sum the estimate would be biased.
    Collective.
    """
    plain, corrected = weights.tokens[part.tokens], weights.corrected[part.tokens]
    totals = torch.stack([plain.double().sum(), corrected.double().sum()])
    dist.all_reduce(totals, group=session.parallel.dp_group)
    total_weight, total_corrected = totals.tolist()
    if total_corrected == 0:
        return None
    own = loss_weights(
        corrected,
        batch.sequence_index[part.tokens] - part.sequences.start,
        part.num_sequences_global,
        session.config.algorithm.loss_aggregation,
        total_weight,
        session.config.rollout.max_new_tokens,
    )
    return streams.select(part.tokens)._replace(loss_weights=own)


def whole_batch(batch: Batch) -> MiniBatch:
    """All of the batch, as if for one update."""
    num_sequences = sum(part.num_sequences_global for part in batch.mini_batches)
    return MiniBatch(slice(0, len(batch.trajectories)), slice(0, len(batch.sequence_index)), num_sequences)
