"""From scored answers to the flat per-token vectors one data-parallel rank trains on."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rest_megatron.actor.dealing import CostModel, Work, deal, imbalance
from rest_megatron.config.schema import Config
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
        borders=mini_batch_borders(config, experience.num_trained),
        learns=_learning(experience, config),
        cost=CostModel.of(session.actor.policy.hf, config),
        dp_rank=0 if whole else parallel.dp_rank,
        dp_size=1 if whole else parallel.dp_size,
        device=parallel.device,
    )


def mini_batch_borders(config: Config, num_groups: int) -> list[int]:
    """Where the mini-batches of so many groups' answers begin, and where the last ends; [0] without answers.

    They have at most train.mini_batch_size answers. Where a group fits in they are whole groups, their sizes equal up
    to one group, for in two of them a prompt is computed twice; otherwise their sizes are equal up to one answer.
    """
    group_size = config.rollout.group_size
    size = config.train.mini_batch_size or max(1, num_groups) * group_size
    unit = group_size if size >= group_size else 1
    units = num_groups * group_size // unit
    count = -(-units // (size // unit))
    return [i * units // count * unit for i in range(count + 1)] if count else [0]


def _learning(experience: Experience, config: Config) -> list[bool]:
    """Whether each answer to train on has a gradient: by its advantage, or by a term that looks at every token."""
    if config.algorithm.regularised:
        return [True] * len(experience.trained)
    return (experience.advantages[: experience.num_trained].flatten() != 0).tolist()


def deal_batch(
    samples: Sequence[Sample],
    advantages: Tensor,
    token_table: Sequence[bytes],
    grammar: Grammar,
    *,
    group_size: int,
    borders: Sequence[int],
    learns: Sequence[bool],
    cost: CostModel,
    dp_rank: int,
    dp_size: int,
    device: torch.device,
) -> Batch:
    """Cut the step's answers into mini-batches, deal each over the data-parallel ranks, keep ours.

    samples: answers to train on, `group_size` to each prompt; advantages: float32, in that order, and more after them.
    borders: of the mini-batches, see `mini_batch_borders`. learns: whether each answer has a gradient.
    """
    works = [
        Work(s.prompt_ids, len(s.token_ids), s.num_sampled, learn) for s, learn in zip(samples, learns, strict=True)
    ]
    deals = [
        [[first + i for i in hand] for hand in deal(works[first:last], dp_size, cost)]
        for first, last in pairwise(borders)
    ]
    hands = [ranks[dp_rank] for ranks in deals]
    mine = [i for hand in hands for i in hand]
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
        mini_batches=_mini_batches(samples, hands, borders),
        imbalance=imbalance(works, deals, cost),
    )


def _mini_batches(samples: Sequence[Sample], hands: Sequence[Sequence[int]], borders: Sequence[int]) -> list[MiniBatch]:
    """Where this rank's share of each mini-batch lies among its answers and their tokens."""
    parts = []
    answers = tokens = 0
    for hand, (first, last) in zip(hands, pairwise(borders), strict=True):
        end, last_token = answers + len(hand), tokens + sum(samples[i].num_sampled for i in hand)
        parts.append(MiniBatch(slice(answers, end), slice(tokens, last_token), last - first))
        answers, tokens = end, last_token
    return parts


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
