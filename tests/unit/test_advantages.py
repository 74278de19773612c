"""`rest_megatron.method.advantages`: group-relative advantages."""

import statistics

import pytest
import torch

from rest_megatron.method.advantages import group_relative, zero_variance_groups


def test_advantages_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, -2.0, 1.0]])
    expected = [[(x - statistics.mean(row)) / (statistics.stdev(row) + 1e-6) for x in row] for row in scores.tolist()]
    torch.testing.assert_close(group_relative(scores, normalize_by_std=True), torch.tensor(expected))


def test_without_the_deviation_only_the_mean_is_taken_off():
    advantages = group_relative(torch.tensor([[1.0, 2.0, 6.0]]), normalize_by_std=False)
    assert advantages.tolist() == [[-2.0, -1.0, 3.0]]
    assert advantages.dtype == torch.float32


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("score", [0.1, -3.7, 1e6 / 3])
def test_a_group_of_equal_scores_gets_exactly_zero(score, normalize_by_std):
    scores = torch.tensor([[score] * 7, [0.0] * 6 + [1.0]])
    advantages = group_relative(scores, normalize_by_std=normalize_by_std)
    assert advantages[0].tolist() == [0.0] * 7
    assert advantages[1].abs().min() > 0
    assert zero_variance_groups(scores).tolist() == [True, False]


def test_advantages_of_a_group_sum_to_zero():
    scores = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3 + 100
    assert group_relative(scores, normalize_by_std=True).sum(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(4, 1), (4,), (2, 3, 4)])
def test_scores_without_groups_are_refused(shape):
    with pytest.raises(ValueError, match="group_size >= 2"):
        group_relative(torch.zeros(shape), normalize_by_std=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_place(bad):
    scores = torch.zeros(3, 4)
    scores[2, 1] = bad
    with pytest.raises(ValueError, match="prompt 2, answer 1"):
        group_relative(scores, normalize_by_std=True)
