"""A backend's shard statistics and their merge, against the reference and by hand."""

import math

import pytest
import torch

from rest_kernels import merge_softmax_stats, reference
from rest_kernels.shard import VocabShard
from rest_kernels.tokens import Softmax, Tokens
from tests.kernels.oracle import BF16, F32, F64, assert_values, exact_values

INF = math.inf


def shard_stats(target, logits, labels, start=0, temperature=1.0, vocab_size=None, weights=None):
    """The backend's statistics of one shard whose first column is `start`."""
    columns = logits.shape[-1]
    if vocab_size is not None:
        columns = min(max(vocab_size - start, 0), columns)
    softmax = Softmax(VocabShard(start, columns, vocab_size or start + columns, None), temperature)
    tokens = Tokens(target.put(labels), -100, None if weights is None else target.put(weights))
    return target.module.softmax_stats(target.put(logits), tokens, softmax, True)


def merged_over(target, logits, labels, cuts, temperature, vocab_size=None):
    """The backend's softmax of rows that are cut into shards of `cuts` columns."""
    starts = torch.tensor([0, *cuts]).cumsum(0).tolist()
    shards = [
        shard_stats(target, shard.contiguous(), labels, start, temperature, vocab_size)
        for shard, start in zip(logits.split(cuts, -1), starts, strict=False)
    ]
    return merge(target, torch.stack(shards), labels, vocab_size or logits.shape[-1], temperature)


def merge(target, stats, labels, vocab_size, temperature=1.0):
    softmax = Softmax(VocabShard(0, vocab_size, vocab_size, None), temperature)
    merged = target.module.merge_stats(target.put(stats), Tokens(target.put(labels), -100, None), softmax)
    return type(merged)(*(value.cpu() for value in merged))


def test_statistics_of_one_row_by_hand(target):
    # Without the label (column 3): z = (x - 2) / 2 = (0, -1), s = 1 + e^-1, u = -e^-1, q = 1 + e^-2.
    logits = torch.tensor([[2.0, 0.0, -INF, 5.0]])
    stats = shard_stats(target, logits, torch.tensor([3]), temperature=2.0).cpu()
    expected = torch.tensor([[2.0, 1 + math.exp(-1), -math.exp(-1), 1 + math.exp(-2), 5.0]])
    torch.testing.assert_close(stats, expected, rtol=1e-6, atol=0)
    # The label is the largest: it is no part of the maximum.
    label_first = shard_stats(target, logits, torch.tensor([0]), temperature=2.0).cpu()
    expected = torch.tensor([[5.0, 1 + math.exp(-2.5), -2.5 * math.exp(-2.5), 1 + math.exp(-5), 2.0]])
    torch.testing.assert_close(label_first, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("vocab", [5, 1187, 9000])
def test_statistics_match_the_reference(target, dtype, vocab):
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(4, vocab, generator=generator) * 3 - 50).to(dtype)
    labels = torch.tensor([0, vocab // 2, vocab - 1, vocab + 5])
    found = shard_stats(target, logits, labels, temperature=0.7, vocab_size=vocab).cpu()
    expected = reference.shard_stats(logits.double(), labels, 0.7)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("label", [-3, 4, 100])
def test_a_label_of_another_shard_has_no_target(target, label):
    stats = shard_stats(target, torch.zeros(1, 4), torch.tensor([label])).cpu()
    assert stats.tolist() == [[0, 4, 0, 4, -INF]]


def test_a_label_counts_from_the_shards_first_column(target):
    stats = shard_stats(target, torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([31]), start=30).cpu()
    assert stats[0, 4] == 2.0 and stats[0, 0] == 3.0


@pytest.mark.parametrize(("width", "vocab_size"), [(3, None), (5000, None), (5000, 0)])
def test_a_shard_without_probability_has_the_neutral_statistics(target, width, vocab_size):
    logits = torch.full((2, width), -INF)
    stats = shard_stats(target, logits, torch.tensor([width + 1, 0]), vocab_size=vocab_size).cpu()
    assert stats.tolist() == [[-INF, 0, 0, 0, -INF]] * 2


def test_a_shard_of_padding_has_the_neutral_statistics(target):
    logits = torch.full((2, 16), math.nan)
    stats = shard_stats(target, logits, torch.tensor([3, 9]), start=32, vocab_size=20).cpu()
    assert stats.tolist() == [[-INF, 0, 0, 0, -INF]] * 2


def test_the_lowest_finite_logits_are_columns_like_any_other(target):
    lowest = torch.finfo(F32).min
    stats = shard_stats(target, torch.full((1, 8), lowest), torch.tensor([0])).cpu()
    assert stats.tolist() == [[lowest, 7, 0, 7, lowest]]


CUTS = [(29,), (13, 16), (1, 27, 1), (8, 8, 8, 5), (1, 2, 3, 4, 5, 6, 7, 1)]


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_merge_equals_float64_over_the_full_row(target, cuts, temperature, dtype):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(6, 29, dtype=F64, generator=generator) * 5).to(dtype)
    logits[::3, :13] = -INF  # whole shards without probability
    labels = torch.randint(13, 29, (6,), generator=generator)
    merged = merged_over(target, logits, labels, cuts, temperature)
    exact = exact_values(logits, labels, temperature)
    if dtype == F32:
        return assert_values(merged, exact)
    for found, value in zip((merged.log_probs, merged.entropy, merged.collision), exact, strict=True):
        torch.testing.assert_close(found, value)


def test_shards_that_differ_by_more_than_float32_can_scale(target):
    logits = torch.tensor([[-1e4, -1e4, 1e4, 1e4]])
    merged = merged_over(target, logits, torch.tensor([2]), (2, 2), 0.5)
    assert merged.log_probs.item() == pytest.approx(-math.log(2))
    assert merged.entropy.item() == pytest.approx(math.log(2))
    assert merged.collision.item() == pytest.approx(0.5)


@pytest.mark.parametrize("label", [0, 3, 9, 20])
def test_merge_of_padded_shards(target, label):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(4))
    logits[:, 21:] = 1e5
    merged = merged_over(target, logits, torch.tensor([label]), (10, 10, 10, 10), 0.7, vocab_size=21)
    assert_values(merged, exact_values(logits[:, :21], torch.tensor([label]), 0.7))


def test_the_public_merge_takes_every_backends_statistics(target):
    generator = torch.Generator().manual_seed(5)
    logits, labels = torch.randn(6, 20, generator=generator), torch.randint(0, 20, (6,), generator=generator)
    stats = torch.stack(
        [shard_stats(target, part.contiguous(), labels, 10 * i) for i, part in enumerate(logits.split(10, -1))]
    )
    merged = merge_softmax_stats(stats.cpu(), 1.0)
    assert_values(merged, exact_values(logits, labels))


@pytest.mark.parametrize("label", [-1, 20, 10**9])
def test_a_label_outside_the_vocabulary_is_not_a_number(target, label):
    logits = torch.zeros(3, 20)
    labels = torch.tensor([4, label, -100])
    log_probs = merge(target, shard_stats(target, logits, labels).unsqueeze(0), labels, 20).log_probs
    assert log_probs.tolist() == [pytest.approx(-math.log(20)), pytest.approx(math.nan, nan_ok=True), 0.0]


def test_rows_that_do_not_count_are_not_read(target):
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    logits[[0, 2, 4]] = math.nan
    labels, weights = torch.tensor([-100, 0, 3, 5, 2]), torch.tensor([1.0, 1.0, 0.0, 2.0, 0.0])
    stats = shard_stats(target, logits, labels, weights=weights).cpu()
    expected = reference.shard_stats(logits[[1, 3]], torch.tensor([0, 5]))
    torch.testing.assert_close(stats[[1, 3]], expected)
