"""Two weightings compared: the pure part, on gradients written down."""

import math

import pytest
import torch

from rest_megatron.actor.comparison import Comparison, adam_direction
from rest_megatron.actor.variance import from_moments


def direction(rows):
    total, squares = [rows.sum(0)], [rows.square().sum(0)]
    adam_direction(total, squares, len(rows))
    return squares[0]


def test_a_direction_is_the_mean_over_the_root_of_a_step_s_second_moment():
    rows = torch.tensor([[1.0, -2.0, 3.0], [3.0, -2.0, -3.0]])
    second = torch.tensor([4.0 + 1.0 / 2, 4.0, 9.0 / 2])
    torch.testing.assert_close(direction(rows), torch.tensor([2.0, -2.0, 0.0]) / second.sqrt())


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_a_direction_knows_no_scale(scale):
    rows = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction(scale * rows), direction(rows))


def test_what_has_no_square_in_float32_has_no_part_in_a_direction_and_zero_stays_zero():
    found = direction(torch.tensor([[0.0, 1e-30, -1e-22, 1.0]]))
    assert found.isfinite().all() and found[0] == 0.0 and found[3] == 1.0
    assert found[1:3].abs().max() < 1e-2


def compared(ours, uniform, product, gains=([3.0, 1.0], [1.0, 1.0])):
    return Comparison((from_moments(*ours), from_moments(*uniform)), product, gains).to_dict()["together"]


SURE = ([1.0, 1.0], 4.0)  # two shares that are equal: |E g|^2 = 4, no variance
LOST = ([1.0, 1.0], 0.0)  # two that cancel


def test_cosine_and_gains_of_two_arms():
    together = compared(SURE, ([4.0, 4.0], 16.0), 4.0)
    assert together["cosine"] == pytest.approx(0.5)
    assert together["gain_ratio"] == pytest.approx(2.0)
    assert together["gain_difference"] == pytest.approx(1.0)
    assert together["gain_difference_error"] == pytest.approx(1.0)  # of 2 and 0


@pytest.mark.parametrize("arms", [(SURE, LOST), (LOST, SURE), (LOST, LOST)])
def test_a_mean_lost_in_the_noise_has_no_cosine(arms):
    assert math.isnan(compared(*arms, 1.0)["cosine"])


@pytest.mark.parametrize("base", [[0.0, 0.0], [-1.0, -1.0]])
def test_without_a_gain_of_uniform_weights_there_is_no_ratio(base):
    assert math.isnan(compared(SURE, SURE, 1.0, ([1.0, 2.0], base))["gain_ratio"])


def test_one_group_tells_a_gain_without_an_error():
    together = compared(SURE, SURE, 1.0, ([2.0], [1.0]))
    assert together["gain_difference"] == 1.0 and math.isnan(together["gain_difference_error"])
