"""Bins of sequences that begin alike."""

import random

import pytest

from rest_megatron.actor.packing import KEYS_PER_TOKEN, Load, first_fit, pack_sequences

LENGTHS = [[], [5], [7, 7, 7, 7], [31, 2, 2, 2, 2, 30, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [16] * 5 + [3] * 11]


@pytest.mark.parametrize("capacity", [31, 32, 64, 1000])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_first_fit_fills_bins_up_to_the_capacity(lengths, capacity):
    bins = first_fit([Load(length, 0, 0) for length in lengths], Load(capacity, 0, 0))
    assert sorted(i for bin in bins for i in bin) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in bin) for bin in bins]
    assert all(0 < total <= capacity for total in totals)
    assert all(a + b > capacity for i, a in enumerate(totals) for b in totals[:i]), "no two bins fit into one"


def group(prompt, *answers):
    """Sequences of a prompt's ids with answers of so many; all ids are others."""
    first = 1000 * prompt[0]
    return [[*prompt, *range(first + 100 * i, first + 100 * i + length)] for i, length in enumerate(answers)]


def numbers(node):
    return sorted([member.number for member in node.members] + [i for child in node.children for i in numbers(child)])


def packed(sequences, capacity, targets=None, shared=True, pp_size=1):
    """Of each bin: (tokens, members) of its roots."""
    bins = pack_sequences(sequences, targets or [1] * len(sequences), capacity, shared, pp_size)
    return [[(root.tokens, numbers(root)) for root in bin] for bin in bins]


TEN, OTHER = list(range(1, 11)), list(range(11, 21))


def test_a_group_that_fits_is_not_cut():
    sequences = [*group(TEN, 5, 5), *group(OTHER, 6, 6)]
    assert packed(sequences, 40) == [[(22, [2, 3])], [(20, [0, 1])]]
    assert packed(sequences, 42) == [[(22, [2, 3]), (20, [0, 1])]]
    assert packed(sequences, 42, shared=False) == [[(16, [2]), (16, [3])], [(15, [0]), (15, [1])]]


def test_a_group_that_does_not_fit_is_cut_into_parts_with_the_prompt_each():
    assert packed(group(TEN, 8, 5, 5, 2), 20) == [[(20, [0, 3])], [(20, [1, 2])]]


def test_what_is_shared_beyond_the_prompt_stays_together():
    turn = [*TEN, *range(100, 106)]
    sequences = [*group(turn, 2, 2), *group([*TEN, 99], 4), *group([*TEN, 98], 4)]
    assert packed(sequences, 20) == [[(20, [0, 1])], [(20, [2, 3])]]


def test_equal_answers_have_no_more_targets_in_a_micro_batch_than_it_has_room_for_tokens():
    """Each has logits of its own."""
    sequences, targets = [TEN] * 9, [8] * 9
    assert packed(sequences, 1000, targets) == [[(10, list(range(9)))]]
    bins = packed(sequences, 25, targets)
    assert [tokens for bin in bins for tokens, _ in bin] == [10, 10, 10]
    assert sorted(i for bin in bins for _, members in bin for i in members) == list(range(9))
    assert all(sum(8 * len(members) for _, members in bin) <= 25 for bin in bins)


def test_many_short_answers_to_a_long_prompt_gather_no_more_keys_than_there_is_room_for():
    sequences = group(list(range(1, 41)), *[1] * 60)
    bins = pack_sequences(sequences, [1] * 60, 100, True, 1)
    keys = [sum(root.end + root.keys_below for root in bin) for bin in bins]
    assert len(bins) == 4 and max(keys) <= KEYS_PER_TOKEN * 100
    assert sorted(i for bin in bins for root in bin for i in numbers(root)) == list(range(60))


def test_a_sequence_longer_than_the_capacity_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"sequence 1 has 11 tokens, train.max_tokens_per_micro_batch is 10"):
        packed([TEN, [*OTHER, 1]], 10)


def waiting(bins, pp_size):
    """What a pipeline's stages take, in tokens."""
    return (len(bins) + pp_size - 1) * max(sum(tokens for tokens, _ in bin) for bin in bins)


@pytest.mark.parametrize("opening", [0, 30], ids=["no opening", "a common opening"])
def test_a_pipeline_gets_as_many_micro_batches_as_shorten_its_wait(opening):
    common = [-i - 1 for i in range(opening)]
    sequences = [[*common, *own] for k in range(8) for own in group([100 * k + i for i in range(1, 11)], 5, 5)]
    one, cut = packed(sequences, 1000), packed(sequences, 1000, pp_size=2)
    assert len(one) == 1 < len(cut)
    assert waiting(cut, 2) < waiting(one, 2)
    assert sorted(i for bin in cut for _, members in bin for i in members) == list(range(16))


@pytest.mark.parametrize("pp_size", [1, 4])
@pytest.mark.parametrize("capacity", [12, 17, 40])
@pytest.mark.parametrize("seed", range(8))
def test_every_sequence_is_in_one_bin_and_no_bin_is_too_full(seed, capacity, pp_size):
    draw = random.Random(seed)
    sequences = [[draw.choice("ab") for _ in range(draw.randint(1, 12))] for _ in range(30)]
    targets = [draw.randint(1, len(own)) for own in sequences]
    bins = pack_sequences(sequences, targets, capacity, True, pp_size)
    assert sorted(i for bin in bins for root in bin for i in numbers(root)) == list(range(30))
    assert all(sum(root.tokens for root in bin) <= capacity for bin in bins)
    assert all(sum(targets[i] for root in bin for i in numbers(root)) <= capacity for bin in bins)
    assert all(sum(root.end + root.keys_below for root in bin) <= KEYS_PER_TOKEN * capacity for bin in bins)
