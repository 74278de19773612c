"""Packing and the rows of a micro-batch."""

import pytest
import torch

from rest_megatron.actor.microbatch import IGNORE_INDEX, micro_batches, pack
from rest_megatron.types import Trajectory

CPU = torch.device("cpu")
LENGTHS = [[], [5], [7, 7, 7, 7], [31, 2, 2, 2, 2, 30, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [16] * 5 + [3] * 11]


@pytest.mark.parametrize("capacity", [31, 32, 64, 1000])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_pack_fills_bins_up_to_the_capacity(lengths, capacity):
    bins = pack(lengths, capacity)
    assert sorted(i for bin in bins for i in bin) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in bin) for bin in bins]
    assert all(0 < total <= capacity for total in totals)
    assert all(a + b > capacity for i, a in enumerate(totals) for b in totals[:i]), "no two bins fit into one"


def test_a_sequence_longer_than_the_capacity_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"sequence 1 has 33 tokens, train.max_tokens_per_micro_batch is 32"):
        pack([3, 33], 32)


# Response tokens, in order: 12 13 | 21 | 32 33 34.
TRAJECTORIES = [Trajectory((10, 11), (12, 13)), Trajectory((20,), (21,)), Trajectory((30, 31), (32, 33, 34))]


def cut(bins, multiple_of=1, same_length=False):
    return micro_batches(TRAJECTORIES, bins, multiple_of=multiple_of, same_length=same_length, device=CPU)


def test_rows_predict_the_response_tokens():
    (batch,) = cut([[2, 0]])
    none = IGNORE_INDEX
    assert batch.tokens.tolist() == [[30, 31, 32, 33, 34, 10, 11, 12, 13]]
    assert batch.labels.tolist() == [none, 32, 33, 34, none, none, 12, 13, none]
    assert batch.rows.tolist() == [1, 2, 3, 6, 7]
    assert batch.index.tolist() == [3, 4, 5, 0, 1]
    assert batch.packed.lengths == (5, 4)
    assert batch.packed.cu_seqlens_q.tolist() == batch.packed.cu_seqlens_kv.tolist() == [0, 5, 9]
    assert (batch.packed.max_seqlen_q, batch.packed.max_seqlen_kv, batch.packed.qkv_format) == (5, 5, "thd")
    assert batch.packed.cu_seqlens_q.dtype == torch.int32


def test_a_stream_is_spread_to_the_rows_of_its_tokens():
    (batch,) = cut([[2, 0]])
    stream = torch.tensor([0.12, 0.13, 0.21, 0.32, 0.33, 0.34])
    assert batch.spread(stream).tolist() == pytest.approx([0, 0.32, 0.33, 0.34, 0, 0, 0.12, 0.13, 0])


def test_a_prompt_of_one_token_predicts_from_its_first_row():
    (batch,) = cut([[1]])
    assert (batch.rows.tolist(), batch.labels.tolist(), batch.index.tolist()) == ([0], [21, IGNORE_INDEX], [2])


@pytest.mark.parametrize(
    "multiple_of, same_length, sizes",
    [(1, False, [7, 4]), (1, True, [7, 7]), (4, False, [8, 4]), (4, True, [8, 8]), (2, True, [8, 8])],
)
def test_padding_is_a_sequence_of_its_own_without_rows(multiple_of, same_length, sizes):
    batches = cut([[2, 1], [0]], multiple_of, same_length)
    assert [batch.tokens.shape[1] for batch in batches] == sizes
    for batch, real, size in zip(batches, ((5, 2), (4,)), sizes, strict=True):
        padding = size - sum(real)
        assert batch.packed.lengths == real + ((padding,) if padding else ())
        assert int(batch.packed.cu_seqlens_q[-1]) == size == len(batch.labels)
        assert (batch.labels[sum(real) :] == IGNORE_INDEX).all()
        assert (batch.rows < sum(real)).all()


@pytest.mark.parametrize("bins", [[[0, 1, 2]], [[0], [1], [2]], [[2, 1], [], [0]]], ids=str)
def test_every_response_token_is_predicted_once(bins):
    batches = cut(bins, multiple_of=2)
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(6))
    flat = torch.tensor([12, 13, 21, 32, 33, 34])
    for batch in batches:
        assert torch.equal(batch.labels[batch.rows], flat[batch.index])
        assert torch.equal(batch.tokens[0, batch.rows + 1], flat[batch.index])
        assert int((batch.labels != IGNORE_INDEX).sum()) == len(batch.rows)


@pytest.mark.parametrize("multiple_of, same_length, size", [(1, False, 1), (2, False, 2), (1, True, 9), (2, True, 10)])
def test_an_empty_bin_is_a_dummy_that_can_run(multiple_of, same_length, size):
    dummy = cut([[0, 2], []], multiple_of, same_length)[1]
    assert dummy.tokens.shape == (1, size)
    assert len(dummy.rows) == len(dummy.index) == 0 and dummy.rows.dtype == torch.int64
    assert (dummy.labels == IGNORE_INDEX).all()
    assert dummy.packed.lengths == (size,)
    assert dummy.spread(torch.ones(6)).tolist() == [0] * size


# Response tokens 12..17, of which tools gave 14 and 15; and one that tools gave alone.
MASKED = [
    Trajectory((10, 11), (12, 13, 14, 15, 16, 17), (True, True, False, False, True, True)),
    Trajectory((20,), (21, 22), (False, False)),
    Trajectory((30,), (31, 32)),
]


def test_rows_predict_targets_alone_and_vectors_have_no_place_for_the_rest():
    (batch,) = micro_batches(MASKED, [[1, 2, 0]], multiple_of=1, same_length=False, device=CPU)
    none = IGNORE_INDEX
    assert [t.num_targets for t in MASKED] == [4, 0, 2]
    assert batch.tokens.tolist() == [[20, 21, 22, 30, 31, 32, 10, 11, 12, 13, 14, 15, 16, 17]]
    assert batch.labels.tolist() == [none, none, none, 31, 32, none, none, 12, 13, none, none, 16, 17, none]
    assert batch.rows.tolist() == [3, 4, 7, 8, 11, 12]
    assert batch.index.tolist() == [4, 5, 0, 1, 2, 3]
    assert batch.sequence_index.tolist() == [1, 1, 2, 2, 2, 2]
    assert (batch.num_sequences, batch.packed.lengths) == (3, (3, 3, 8))


def test_tokens_that_are_no_targets_count_for_the_capacity():
    assert [t.length for t in MASKED] == [8, 3, 3]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Trajectory((1,), (2, 3), (True,)).num_targets  # noqa: B018
