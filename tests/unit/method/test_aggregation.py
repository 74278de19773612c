"""`rest_megatron.method.aggregation`: one vector of loss weights over the global mini-batch."""

import pytest
import torch

from rest_megatron.method.aggregation import loss_weights

LENGTHS = [3, 1, 6, 2]
LIMIT = 8
MODES = ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    sequence_index = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    return torch.rand(12, generator=generator) + 0.5, torch.randn(12, generator=generator), sequence_index


def expected_loss(mode, weights, losses, sequence_index):
    """The definitions, in float64 and one sequence at a time."""
    weights, losses = weights.double(), losses.double()
    if mode == "token-mean":
        return (weights * losses).sum() / weights.sum()
    if mode == "seq-mean-token-mean":
        return sum((weights * losses)[sequence_index == i].mean() for i in range(4)) / 4
    return sum((weights * losses)[sequence_index == i].sum() / LIMIT for i in range(4)) / 4


@pytest.mark.parametrize("mode", MODES)
def test_the_weighted_sum_is_the_aggregation(batch, mode):
    weights, losses, sequence_index = batch
    vector = loss_weights(weights, sequence_index, 4, mode, weights.double().sum().item(), LIMIT)
    assert vector.dtype == torch.float32
    expected = expected_loss(mode, weights, losses, sequence_index)
    torch.testing.assert_close((vector.double() * losses).sum(), expected, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [[[0, 1, 2, 3]], [[0], [1, 2], [3]], [[3, 1], [2, 0]]])
def test_any_cut_into_micro_batches_gives_the_same_loss(batch, mode, cut):
    weights, losses, sequence_index = batch
    total = weights.double().sum().item()
    loss = 0.0
    for sequences in cut:
        mine = torch.cat([(sequence_index == i).nonzero().flatten() for i in sequences])
        local_index = torch.cat([torch.full((LENGTHS[i],), n) for n, i in enumerate(sequences)])
        loss += (loss_weights(weights[mine], local_index, 4, mode, total, LIMIT).double() * losses[mine]).sum()
    torch.testing.assert_close(loss, expected_loss(mode, weights, losses, sequence_index), rtol=2e-6, atol=1e-8)


def test_unit_weights_give_the_plain_means():
    index = torch.tensor([0, 0, 1])
    weights = {mode: loss_weights(torch.ones(3), index, 2, mode, 3.0, LIMIT) for mode in MODES}
    assert weights["seq-mean-token-mean"].tolist() == [0.25, 0.25, 0.5]
    torch.testing.assert_close(weights["token-mean"], torch.full((3,), 1 / 3))
    assert weights["seq-mean-token-sum-norm"].tolist() == [1 / 16] * 3


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_without_tokens_gets_an_empty_vector(mode):
    empty = torch.empty(0)
    assert loss_weights(empty, empty.long(), 4, mode, 12.0, LIMIT).shape == (0,)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'sum' is unknown"):
        loss_weights(torch.ones(1), torch.zeros(1, dtype=torch.int64), 1, "sum", 1.0, LIMIT)


@pytest.mark.parametrize(
    "mode, count, total, limit",
    [
        ("seq-mean-token-mean", 0, 1.0, LIMIT),
        ("token-mean", 1, 0.0, LIMIT),
        ("seq-mean-token-sum-norm", 0, 1.0, LIMIT),
        ("seq-mean-token-sum-norm", 1, 1.0, 0),
    ],
)
def test_an_empty_mini_batch_is_refused(mode, count, total, limit):
    with pytest.raises(ValueError, match="at least one token"):
        loss_weights(torch.ones(1), torch.zeros(1, dtype=torch.int64), count, mode, total, limit)
