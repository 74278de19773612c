"""Shard statistics and their merge, against torch's own log_softmax in float64."""

import math

import pytest
import torch

from rest_kernels import merge_softmax_stats, reference, shard_softmax_stats


def merged_over(logits, labels, cuts, temperature):
    rows = torch.arange(len(labels))
    starts = torch.tensor([0, *cuts]).cumsum(0)
    shards = [
        shard_softmax_stats(shard, rows, labels - start, temperature)
        for shard, start in zip(logits.split(cuts, -1), starts, strict=False)
    ]
    return merge_softmax_stats(torch.stack(shards), temperature)


def test_statistics_of_one_row_by_hand():
    # z = (x - 2) / 2 = (0, -1), label 1: s = 1, u = -e^-1, q = 1 + e^-2.
    logits = torch.tensor([[2.0, 0.0, -math.inf]])
    stats = shard_softmax_stats(logits, torch.tensor([0]), torch.tensor([1]), 2.0)
    torch.testing.assert_close(stats, torch.tensor([[2.0, 1.0, -math.exp(-1), 1 + math.exp(-2), 0.0]]))
    elsewhere = shard_softmax_stats(logits, torch.tensor([0]), torch.tensor([3]), 2.0)
    torch.testing.assert_close(elsewhere[0, 1].item(), 1 + math.exp(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("label", [-3, 4, 100])
def test_a_label_of_another_shard_has_no_target(label):
    stats = shard_softmax_stats(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([label]), 1.0)
    assert stats[0, 4] == -math.inf


@pytest.mark.parametrize("width", [0, 3])
def test_an_empty_or_fully_masked_shard_has_the_neutral_statistics(width):
    logits = torch.full((2, width), -math.inf)
    stats = shard_softmax_stats(logits, torch.arange(2), torch.zeros(2, dtype=torch.int64), 1.0)
    assert stats.tolist() == [[-math.inf, 0, 0, 0, -math.inf]] * 2


@pytest.mark.parametrize("cuts", [(29,), (13, 16), (1, 27, 0, 1), (8, 8, 8, 5)])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_merge_equals_float64_over_the_full_row(cuts, temperature):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 29, dtype=torch.float64, generator=generator) * 5
    logits[::3, :13] = -math.inf  # whole shards without probability
    labels = torch.randint(13, 29, (40,), generator=generator)
    merged = merged_over(logits, labels, cuts, temperature)
    torch.testing.assert_close(merged.log_probs, reference.log_probs(logits, labels, temperature))
    torch.testing.assert_close(merged.entropy, reference.entropy(logits, temperature))
    torch.testing.assert_close(merged.collision, reference.collision(logits, temperature))


def test_merge_survives_shards_that_differ_by_more_than_float32_can_scale():
    logits = torch.tensor([[-1e4, -1e4, 1e4, 1e4]])
    merged = merged_over(logits, torch.tensor([2]), (2, 2), 0.5)
    assert merged.log_probs.item() == pytest.approx(-math.log(2))
    assert merged.entropy.item() == pytest.approx(math.log(2))
    assert merged.collision.item() == pytest.approx(0.5)


def test_only_listed_rows_are_read():
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    logits[[0, 2]] = math.nan
    stats = shard_softmax_stats(logits, torch.tensor([1, 3]), torch.tensor([0, 5]), 1.0)
    torch.testing.assert_close(stats, reference.shard_stats(logits[[1, 3]], torch.tensor([0, 5])))
