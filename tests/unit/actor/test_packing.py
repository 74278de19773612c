"""Bins of sequences that begin alike."""

import random

import pytest

from rest_megatron.actor.packing import pack, pack_roots
from rest_megatron.actor.prefixes import Node, shared_prefixes

LENGTHS = [[], [5], [7, 7, 7, 7], [31, 2, 2, 2, 2, 30, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [16] * 5 + [3] * 11]


@pytest.mark.parametrize("capacity", [31, 32, 64, 1000])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_pack_fills_bins_up_to_the_capacity(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(i for bin in bins for i in bin) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in bin) for bin in bins]
    assert all(0 < total <= capacity for total in totals)
    assert all(a + b > capacity for i, a in enumerate(totals) for b in totals[:i]), "no two bins fit into one"


def group(prompt: int, answers: list[int], first: int = 0) -> Node:
    """A prompt of so many tokens and answers of so many."""
    leaves = [Node(prompt + own, first + i, [first + i]) for i, own in enumerate(answers)]
    return Node(prompt, first, children=leaves)


def tokens_and_members(bins):
    return [[(root.tokens, sorted(root.sequences())) for root in bin] for bin in bins]


def test_a_group_that_fits_is_not_cut():
    roots = [group(10, [5, 5]), group(10, [6, 6], first=2)]
    assert tokens_and_members(pack_roots(roots, 40, 1)) == [[(22, [2, 3])], [(20, [0, 1])]]
    assert tokens_and_members(pack_roots(roots, 42, 1)) == [[(22, [2, 3]), (20, [0, 1])]]


def test_a_group_that_does_not_fit_is_cut_into_parts_with_the_prompt_each():
    assert tokens_and_members(pack_roots([group(10, [8, 5, 5, 2])], 20, 1)) == [[(20, [0, 3])], [(20, [1, 2])]]


def test_what_is_shared_beyond_the_prompt_stays_together():
    turn = Node(16, 0, children=[Node(18, 0, [0]), Node(18, 1, [1])])
    root = Node(10, 0, children=[turn, Node(15, 2, [2]), Node(15, 3, [3])])
    assert tokens_and_members(pack_roots([root], 20, 1)) == [[(20, [0, 1])], [(20, [2, 3])]]


def test_a_pipeline_gets_more_bins_but_no_group_is_cut_for_it():
    roots = [group(10, [5, 5], first=2 * i) for i in range(8)]
    assert [len(bin) for bin in pack_roots(roots, 1000, 1)] == [8]
    assert [len(bin) for bin in pack_roots(roots, 1000, 4)] == [2] * 4
    assert [len(bin) for bin in pack_roots(roots, 1000, 50)] == [1] * 8


@pytest.mark.parametrize("capacity", [12, 17, 40])
@pytest.mark.parametrize("seed", range(10))
def test_every_sequence_is_in_one_bin_and_no_bin_is_too_full(seed, capacity):
    draw = random.Random(seed)
    sequences = [[draw.choice("ab") for _ in range(draw.randint(1, 12))] for _ in range(30)]
    bins = pack_roots(shared_prefixes(sequences), capacity, 1)
    assert sorted(i for bin in bins for root in bin for i in root.sequences()) == list(range(30))
    assert all(sum(root.tokens for root in bin) <= capacity for bin in bins)
