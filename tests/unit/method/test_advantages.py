"""`rest_megatron.method.advantages`: group-relative and leave-one-out advantages, penalty on long answers."""

import statistics
from functools import partial

import pytest
import torch

from rest_megatron.method.advantages import group_relative, leave_one_out, overlong_penalty, zero_variance_groups

ESTIMATORS = [partial(group_relative, normalize_by_std=True), leave_one_out]


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


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("shape", [(4, 1), (4,), (2, 3, 4)])
def test_scores_without_groups_are_refused(estimate, shape):
    with pytest.raises(ValueError, match="group_size >= 2"):
        estimate(torch.zeros(shape))


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused_with_its_place(estimate, bad):
    scores = torch.zeros(3, 4)
    scores[2, 1] = bad
    with pytest.raises(ValueError, match="prompt 2, answer 1"):
        estimate(scores)


def test_leave_one_out_by_hand():
    advantages = leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    assert advantages.tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]
    assert advantages.dtype == torch.float32


def test_leave_one_out_takes_each_score_from_the_mean_of_the_others():
    scores = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    for row, advantages in zip(scores.tolist(), leave_one_out(scores).tolist(), strict=True):
        for i, advantage in enumerate(advantages):
            assert advantage == pytest.approx(row[i] - statistics.mean(row[:i] + row[i + 1 :]), abs=1e-5)


@pytest.mark.parametrize("score", [0.1, -3.7, 1e6 / 3])
def test_leave_one_out_gives_exactly_zero_to_a_group_of_equal_scores(score):
    assert leave_one_out(torch.tensor([[score] * 7])).tolist() == [[0.0] * 7]


def test_an_answer_is_punished_over_the_last_tokens_before_the_limit():
    lengths = torch.tensor([[0, 79], [80, 85], [90, 100]])
    penalties = overlong_penalty(lengths, max_new_tokens=100, buffer=20, penalty=1.0)
    torch.testing.assert_close(penalties, torch.tensor([[0.0, 0.0], [0.0, -0.25], [-0.5, -1.0]]))
    assert penalties.dtype == torch.float32


@pytest.mark.parametrize("penalty", [0.0, 0.5, 2.0])
def test_the_penalty_scales_and_longer_than_the_limit_is_no_worse(penalty):
    penalties = overlong_penalty(torch.tensor([95, 100, 130]), max_new_tokens=100, buffer=10, penalty=penalty)
    torch.testing.assert_close(penalties, -penalty * torch.tensor([0.5, 1.0, 1.0]))


def test_a_buffer_of_zero_punishes_nothing():
    assert overlong_penalty(torch.tensor([1, 100]), max_new_tokens=100, buffer=0, penalty=1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("buffer", [-1, 101])
def test_a_buffer_outside_the_answer_is_refused(buffer):
    with pytest.raises(ValueError, match="overlong buffer"):
        overlong_penalty(torch.tensor([1]), max_new_tokens=100, buffer=buffer, penalty=1.0)
