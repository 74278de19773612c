"""The rows of a micro-batch and what they predict."""

import pytest
import torch

from rest_megatron.actor.microbatch import micro_batches, tokens_to_run
from rest_megatron.actor.prefixes import shared_prefixes, unshared
from rest_megatron.model.packed import Span
from rest_megatron.types import Trajectory

CPU = torch.device("cpu")


def cut(trajectories, bins=None, multiple_of=1, same_length=False, shared=True):
    """bins: numbers of the trajectories of each; None: all in one."""
    sequences = [tokens_to_run(t) for t in trajectories]
    roots = []
    for bin in [range(len(trajectories))] if bins is None else bins:
        own = [sequences[i] if i in bin else [] for i in range(len(sequences))]
        roots.append((shared_prefixes if shared else unshared)(own, [t.num_targets for t in trajectories]))
    return micro_batches(trajectories, sequences, roots, multiple_of=multiple_of, same_length=same_length, device=CPU)


# Response tokens, in order: 12 13 | 21 | 32 33 34.
TRAJECTORIES = [Trajectory((10, 11), (12, 13)), Trajectory((20,), (21,)), Trajectory((30, 31), (32, 33, 34))]


def test_rows_predict_the_response_tokens_and_the_last_one_is_not_run():
    (batch,) = cut(TRAJECTORIES, [[2, 0]])
    assert batch.tokens.tolist() == [[10, 11, 12, 30, 31, 32, 33]]
    assert batch.rows.tolist() == [1, 2, 4, 5, 6]
    assert batch.labels.tolist() == [12, 13, 32, 33, 34]
    assert batch.index.tolist() == [0, 1, 3, 4, 5]
    assert batch.packed.spans == (Span(3, 0), Span(4, 0))
    assert batch.packed.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.packed.cu_seqlens_q.tolist() == batch.packed.cu_seqlens_kv.tolist() == [0, 3, 7]
    assert (batch.packed.max_seqlen_q, batch.packed.max_seqlen_kv, batch.packed.qkv_format) == (4, 4, "thd")
    assert batch.packed.cu_seqlens_q.dtype == torch.int32


GROUP = [
    Trajectory((10, 11), (12, 13, 14)),
    Trajectory((20,), (21,)),
    Trajectory((10, 11), (15, 16)),
    Trajectory((10, 11), (12, 13, 14)),
]


def test_a_shared_prompt_is_run_once_and_its_last_row_predicts_each_answers_first_token():
    (batch,) = cut(GROUP)
    assert batch.tokens.tolist() == [[20, 10, 11, 15, 12, 13]]
    assert batch.packed.spans == (Span(1, 0), Span(2, 0), Span(1, 2, 1), Span(2, 2, 1))
    assert batch.packed.positions.tolist() == [0, 0, 1, 2, 2, 3]
    assert batch.packed.cu_seqlens_kv.tolist() == [0, 1, 3, 6, 10]
    assert batch.packed.key_index.tolist() == [0, 1, 2, 1, 2, 3, 1, 2, 4, 5]
    of = {i: batch.rows[batch.sequence_index == i].tolist() for i in range(4)}
    labels = {i: batch.labels[batch.sequence_index == i].tolist() for i in range(4)}
    assert of == {0: [0], 1: [2, 3], 2: [2, 4, 5], 3: [2, 4, 5]}
    assert labels == {0: [21], 1: [15, 16], 2: [12, 13, 14], 3: [12, 13, 14]}
    assert batch.index.tolist() == [3, 4, 5, 0, 1, 2, 6, 7, 8]
    assert batch.num_sequences == 4


@pytest.mark.parametrize(
    "multiple_of, same_length, sizes",
    [(1, False, [5, 3]), (1, True, [5, 5]), (4, False, [8, 4]), (4, True, [8, 8]), (2, True, [6, 6])],
)
def test_padding_is_a_sequence_of_its_own_without_rows(multiple_of, same_length, sizes):
    batches = cut(TRAJECTORIES, [[2, 1], [0]], multiple_of, same_length)
    assert [batch.tokens.shape[1] for batch in batches] == sizes
    for batch, real, size in zip(batches, ((1, 4), (3,)), sizes, strict=True):
        padding = size - sum(real)
        spans = [Span(length, 0) for length in real + ((padding,) if padding else ())]
        assert batch.packed.spans == tuple(spans)
        assert int(batch.packed.cu_seqlens_q[-1]) == size
        assert (batch.rows < sum(real)).all()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("bins", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[2, 1], [], [0, 3]]], ids=str)
def test_every_response_token_is_predicted_once_from_the_tokens_before_it(bins, shared):
    batches = cut(GROUP, bins, multiple_of=2, shared=shared)
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(9))
    flat = torch.tensor([12, 13, 14, 21, 15, 16, 12, 13, 14])
    last = torch.tensor([11, 12, 13, 20, 11, 15, 11, 12, 13])
    for batch in batches:
        assert torch.equal(batch.labels, flat[batch.index])
        assert torch.equal(batch.tokens[0, batch.rows], last[batch.index])


@pytest.mark.parametrize("multiple_of, same_length, size", [(1, False, 1), (2, False, 2), (1, True, 7), (2, True, 8)])
def test_an_empty_bin_is_a_dummy_that_can_run(multiple_of, same_length, size):
    dummy = cut(TRAJECTORIES, [[0, 2], []], multiple_of, same_length)[1]
    assert dummy.tokens.shape == (1, size)
    assert len(dummy.rows) == len(dummy.index) == 0 and dummy.rows.dtype == torch.int64
    assert dummy.packed.spans == (Span(size, 0),)


# Response tokens 12..17, of which tools gave 14 and 15; and one that tools gave alone.
MASKED = [
    Trajectory((10, 11), (12, 13, 14, 15, 16, 17, 18), (True, True, False, False, True, True, False)),
    Trajectory((20,), (21, 22), (False, False)),
    Trajectory((30,), (31, 32)),
]


def test_rows_predict_targets_alone_and_vectors_have_no_place_for_the_rest():
    (batch,) = cut(MASKED)
    assert [t.num_targets for t in MASKED] == [4, 0, 2]
    assert batch.tokens.tolist() == [[30, 31, 10, 11, 12, 13, 14, 15, 16]]
    assert batch.rows.tolist() == [0, 1, 3, 4, 7, 8]
    assert batch.labels.tolist() == [31, 32, 12, 13, 16, 17]
    assert batch.index.tolist() == [4, 5, 0, 1, 2, 3]
    assert batch.sequence_index.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.num_sequences == 2


def test_what_is_run_ends_before_the_last_target():
    assert [len(tokens_to_run(t)) for t in MASKED] == [7, 0, 2]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Trajectory((1,), (2, 3), (True,)).num_targets  # noqa: B018
