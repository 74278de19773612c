"""Which data-parallel rank gets which answers.

A rank computes a prompt once for all of its answers to it. So groups are dealt whole, and cut, which computes their
prompt on one more rank, only where the others would wait longer for the fullest rank.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from transformers import PreTrainedConfig

from rest_megatron.config.schema import Config
from rest_megatron.model.mapping import expected_tensors
from rest_megatron.model.model import head_dim
from rest_megatron.types import Trajectory

EVEN = 1.02  # the fullest rank's cost over the mean, up to which no group is cut


class Work(NamedTuple):
    """What is to be computed of one answer."""

    prompt_ids: Sequence[int]
    response_tokens: int
    targets: int
    learns: bool
    """Whether the updates read it, and not the log-probs alone."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> Self:
        """Of an answer that is learned from."""
        return cls(trajectory.prompt_ids, len(trajectory.response_ids), trajectory.num_targets, learns=True)


@dataclass(frozen=True)
class CostModel:
    """What answers cost, in tokens: 1 is a token's forward pass through all layers, but for attention.

    Costs are whole numbers, so that their sums are the same in any order, and a deal the same on every rank.
    """

    row: float
    """One target's logits."""
    pair: float
    """Attention of one query to one key, in all layers."""
    learner: int
    """Passes of a step over an answer that is learned from, a backward pass being two."""
    other: int = 1
    """Over another."""

    @classmethod
    def of(cls, hf: PreTrainedConfig, config: Config) -> Self:
        """From the numbers of parameters: a token's pass takes two operations for each, full recompute adds a pass."""
        shapes = expected_tensors(hf).items()
        layers = sum(math.prod(shape) for name, shape in shapes if name.startswith("model.layers."))
        update = 4 if config.megatron.get("recompute_granularity") == "full" else 3
        before = 1 + (config.algorithm.kl_coef > 0)
        saved = config.algorithm.old_log_probs == "update"
        return cls(
            row=hf.vocab_size * hf.hidden_size / layers,
            pair=2 * hf.num_hidden_layers * hf.num_attention_heads * head_dim(hf) / layers,
            learner=before - saved + update * config.train.epochs,
            other=before,
        )

    def prompt(self, tokens: int) -> int:
        """One pass over a prompt."""
        return round(tokens + self.pair * tokens**2 / 2)

    def answer(self, work: Work) -> int:
        """All passes over an answer, without those over its prompt."""
        own, before = work.response_tokens, len(work.prompt_ids)
        once = own + self.row * work.targets + self.pair * (before * own + own**2 / 2)
        return round(once) * self.passes(work.learns)

    def passes(self, learns: bool) -> int:
        """How often a step computes an answer, or a prompt of which some answer learns."""
        return self.learner if learns else self.other

    def rank(self, works: Sequence[Work]) -> int:
        """Of all these answers on one rank."""
        learns: dict[tuple[int, ...], bool] = {}
        for work in works:
            prompt = tuple(work.prompt_ids)
            learns[prompt] = learns.get(prompt, False) or work.learns
        prompts = sum(self.prompt(len(prompt)) * self.passes(any_learns) for prompt, any_learns in learns.items())
        return prompts + sum(map(self.answer, works))


def deal(works: Sequence[Work], num_ranks: int, cost: CostModel) -> list[list[int]]:
    """Indices of the answers for each rank, ascending, at costs as even as whole groups and cuts that pay make them.

    Answers to equal prompts are a group. Groups go whole, dearest first, each to the emptiest rank. Then, while the
    fullest is more than 2 % above the mean, the last answers of one of its groups go to the emptiest: of the group, and
    as many, as leave the fuller of the two least full. Deterministic, so every rank computes the same deal.
    """
    if num_ranks == 1:
        return [list(range(len(works)))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, work in enumerate(works):
        groups.setdefault(tuple(work.prompt_ids), []).append(i)
    whole = list(groups.values())
    hands = deal_costs([cost.rank([works[i] for i in group]) for group in whole], num_ranks)
    table = _Table(works, cost, [{number: whole[number] for number in hand} for hand in hands])
    table.even_out()
    return [sorted(i for part in parts.values() for i in part) for parts in table.hands]


def deal_costs(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Indices for each rank, ascending, of what cannot be cut: dearest first, each to the emptiest rank."""
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    emptiest = [(0, 0, rank) for rank in range(num_ranks)]
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, count, rank = emptiest[0]
        hands[rank].append(i)
        heapq.heapreplace(emptiest, (total + costs[i], count + 1, rank))
    return [sorted(hand) for hand in hands]


def imbalance(works: Sequence[Work], deals: Sequence[Sequence[Sequence[int]]], cost: CostModel) -> float:
    """The fullest rank's cost over the mean: 1 where all cost the same; of several deals, which wait for each other."""
    costs = [[cost.rank([works[i] for i in hand]) for hand in hands] for hands in deals]
    means = sum(sum(one) / len(one) for one in costs)
    return sum(map(max, costs)) / means if means else 1.0


class _Cut(NamedTuple):
    """The last so many `answers` of a group move; `fuller`: what the dearer of the two ranks then costs."""

    fuller: int
    group: int
    answers: int


class _Table:
    """Parts of groups in the ranks' hands, by the group's number: each rank's indices of its answers, ascending."""

    def __init__(self, works: Sequence[Work], cost: CostModel, hands: list[dict[int, list[int]]]) -> None:
        self.hands = hands
        self._cost = cost
        self._learns = np.array([work.learns for work in works], dtype=np.int64)
        self._answers = np.array([cost.answer(work) for work in works], dtype=np.int64)
        self._prompts = {g: cost.prompt(len(works[part[0]].prompt_ids)) for hand in hands for g, part in hand.items()}
        self._loads = [sum(self._part(g, part) for g, part in hand.items()) for hand in hands]

    def even_out(self) -> None:
        """Cut groups of the fullest rank for the emptiest while that pays; only cuts that lower the maximum stay."""
        least, kept = max(self._loads), self.hands
        while max(self._loads) * len(self._loads) > EVEN * sum(self._loads):
            full, empty = self._loads.index(max(self._loads)), self._loads.index(min(self._loads))
            cut = min(self._best_cut(g, full, empty) for g in self.hands[full])
            if cut.fuller >= self._loads[full]:
                break
            self._move(cut, full, empty)
            if max(self._loads) < least:
                least, kept = max(self._loads), self.hands
        self.hands = kept

    def _best_cut(self, group: int, full: int, empty: int) -> _Cut:
        """The cut of one group that leaves the fuller of the two ranks least full."""
        part, there = self.hands[full][group], self.hands[empty].get(group, [])
        last = np.array(part[::-1])
        moved, learning = np.cumsum(self._answers[last]), np.cumsum(self._learns[last])
        is_left = np.arange(len(part))[::-1] > 0
        left = moved[-1] - moved + self._prompt(group, is_left, learning[-1] - learning)
        arrived = self._answers[there].sum() + moved
        arrived += self._prompt(group, np.array(True), self._learns[there].sum() + learning)
        fuller = np.maximum(
            self._loads[full] - self._part(group, part) + left, self._loads[empty] - self._part(group, there) + arrived
        )
        count = int(fuller.argmin())
        return _Cut(int(fuller[count]), group, count + 1)

    def _move(self, cut: _Cut, full: int, empty: int) -> None:
        part, there = self.hands[full][cut.group], self.hands[empty].get(cut.group, [])
        parts = {full: part[: -cut.answers], empty: sorted(there + part[-cut.answers :])}
        self.hands = list(self.hands)
        for rank, new in parts.items():
            hand = self.hands[rank]
            self._loads[rank] += self._part(cut.group, new) - self._part(cut.group, hand.get(cut.group, []))
            self.hands[rank] = {g: own for g, own in {**hand, cut.group: new}.items() if own}

    def _part(self, group: int, part: list[int]) -> int:
        """What these answers of a group cost on one rank."""
        own, learning = self._answers[part].sum(), self._learns[part].sum()
        return int(own + self._prompt(group, np.array(bool(part)), learning))

    def _prompt(self, group: int, is_there: np.ndarray, learning: np.ndarray) -> np.ndarray:
        """All passes over a group's prompt where some answers are there, so many of them learning."""
        return self._prompts[group] * is_there * np.where(learning > 0, self._cost.learner, self._cost.other)
