"""From scored answers to the flat per-token vectors one data-parallel rank trains on."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rest_megatron.actor.dealing import deal
from rest_megatron.data.answers import think_open, turns
from rest_megatron.grammar import Grammar
from rest_megatron.method.regions import label_regions
from rest_megatron.session import Session
from rest_megatron.types import Batch, Experience, MiniBatch, Sample, Trajectory


def make_batch(session: Session, experience: Experience, *, whole: bool = False) -> Batch:
    """This rank's share of the answers to train on; whole: all of them in their order, on every rank."""
    config, parallel, samples = session.config, session.parallel, experience.trained
    return deal_batch(
        samples,
        experience.advantages.flatten(),
        session.token_table,
        session.grammar,
        group_size=config.rollout.group_size,
        mini_batch_size=config.train.mini_batch_size or len(samples),
        dp_rank=0 if whole else parallel.dp_rank,
        dp_size=1 if whole else parallel.dp_size,
        device=parallel.device,
    )


def deal_batch(
    samples: Sequence[Sample],
    advantages: Tensor,
    token_table: Sequence[bytes],
    grammar: Grammar,
    *,
    group_size: int,
    mini_batch_size: int,
    dp_rank: int,
    dp_size: int,
    device: torch.device,
) -> Batch:
    """Cut the step's answers into mini-batches, deal each over the data-parallel ranks, keep ours.

    samples: answers to train on, `group_size` to each prompt; advantages: float32, in that order, and more after them.
    Mini-batches have at most `mini_batch_size` answers and equal sizes up to one; without answers there is none.
    """
    mine: list[int] = []
    mini_batches = []
    num_tokens = 0
    count = -(-len(samples) // max(1, mini_batch_size))
    borders = [i * len(samples) // count for i in range(count + 1)] if count else [0]
    for first, last in pairwise(borders):
        part = samples[first:last]
        hand = deal([len(s.prompt_ids) + len(s.token_ids) for s in part], dp_size)[dp_rank]
        added = sum(part[i].num_sampled for i in hand)
        mini_batches.append(
            MiniBatch(slice(len(mine), len(mine) + len(hand)), slice(num_tokens, num_tokens + added), len(part))
        )
        mine += [first + i for i in hand]
        num_tokens += added
    ours = [samples[i] for i in mine]
    lengths = torch.tensor([s.num_sampled for s in ours], dtype=torch.int64)
    regions = [label for s in ours for label in _regions(s, token_table, grammar)]
    return Batch(
        trajectories=[Trajectory(s.prompt_ids, s.token_ids, s.response_mask) for s in ours],
        sample_index=mine,
        group_index=[i // group_size for i in mine],
        num_groups=len(samples) // group_size,
        advantages=advantages[mine].repeat_interleave(lengths).to(device),
        regions=torch.tensor(regions, dtype=torch.int64, device=device),
        sequence_index=torch.arange(len(ours)).repeat_interleave(lengths).to(device),
        rollout_log_probs=torch.tensor(
            [x for s in ours for x in s.sampled(s.log_probs)], dtype=torch.float32, device=device
        ),
        mini_batches=mini_batches,
    )


def _regions(sample: Sample, token_table: Sequence[bytes], grammar: Grammar) -> list[int]:
    """Of the sampled ids. Each turn is an answer of its own; tools only answer one that ended with a stop token."""
    labels = []
    for turn in turns(sample.token_ids, sample.response_mask):
        labels += label_regions(
            [token_table[token] for token in sample.token_ids[turn]],
            stop_token=turn.stop < len(sample.token_ids) or sample.finish_reason == "stop",
            grammar=grammar,
            think_open=think_open((*sample.prompt_ids, *sample.token_ids[: turn.start]), token_table),
        )
    return labels
