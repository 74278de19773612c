"""The policy loss's clips, worked out by hand on two equal logits: p_y = 1/2, d log p_y / dx_y = 1/2."""

import math

import pytest
import torch

from tests.kernels.oracle import F32, F64

# How close to a bound the ratio comes, and how well loss and gradient are known there.
EDGES = {F64: (1e-9, 1e-12), F32: (1e-5, 2e-6)}
HIGH, LOW = 1.28, 0.8
CLIPS = [
    # advantage, ratio, which side of it, dual clip, ratio the loss sees (None: its own)
    (1.5, 0.5, 0, None, None),
    (1.5, HIGH, -1, None, None),
    (1.5, HIGH, +1, None, HIGH),
    (1.5, 9.0, 0, 3.0, HIGH),
    (-1.5, LOW, -1, None, LOW),
    (-1.5, LOW, +1, None, None),
    (-1.5, 9.0, 0, None, None),
    (-1.5, 3.0, -1, 3.0, None),
    (-1.5, 3.0, +1, 3.0, 3.0),
    (-1.5, 0.1, 0, 3.0, LOW),
    (0.0, 0.1, 0, 3.0, None),
    (0.0, 9.0, 0, 3.0, None),
]


def one_token(target, dtype, log_ratio, advantage, **settings):
    """(result, gradient [1, 2]) of a token with weight 0.4 and this log-ratio."""
    leaf = torch.zeros(1, 2, dtype=dtype, requires_grad=True)
    vectors = {
        "old_log_probs": torch.tensor([math.log(0.5) - log_ratio], dtype=dtype),
        "advantages": torch.tensor([advantage], dtype=dtype),
        "loss_weights": torch.tensor([0.4], dtype=dtype),
    }
    result = target.ppo_loss(leaf, torch.tensor([1]), **vectors, **settings)
    return result, torch.autograd.grad(result.loss, leaf)[0]


@pytest.mark.parametrize(("advantage", "bound", "side", "dual", "seen"), CLIPS)
@pytest.mark.parametrize("dtype", [F64, F32])
def test_clip_boundaries_by_hand(target, dtype, advantage, bound, side, dual, seen):
    edge, rel = EDGES[dtype]
    ratio = bound * (1 + side * edge)
    settings = {"clip_ratio_low": 1 - LOW, "clip_ratio_high": HIGH - 1, "clip_ratio_dual": dual}
    result, grad = one_token(target, dtype, math.log(ratio), advantage, **settings)
    clipped = seen is not None
    assert result.loss.item() == pytest.approx(-0.4 * advantage * (seen if clipped else ratio), rel=rel)
    slope = 0.0 if clipped else -0.4 * advantage * ratio / 2
    torch.testing.assert_close(grad, torch.tensor([[-slope, slope]], dtype=dtype), rtol=rel, atol=0)
    assert result.metrics["clipped"].item() == clipped
    assert result.metrics["clipped_low"].item() == (clipped and advantage < 0)
    assert result.metrics["ratio"].item() == pytest.approx(ratio, rel=rel)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("delta", [-25.0, -20.5, 20.5, 25.0, 500.0])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_log_ratio_beyond_20_is_held_and_has_no_gradient(target, dtype, advantage, delta):
    result, grad = one_token(target, dtype, delta, advantage)
    bounded = math.exp(math.copysign(20, delta))
    seen = min(bounded, 1.2) if advantage > 0 else max(bounded, 0.8)
    assert result.loss.item() == pytest.approx(-0.4 * advantage * seen, rel=1e-5)
    assert (grad == 0).all()
    assert result.metrics["ratio"].item() == pytest.approx(bounded, rel=1e-5)


@pytest.mark.parametrize(("advantage", "delta"), [(1.0, -19.5), (-1.0, 19.5)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_log_ratio_just_within_20_still_moves(target, dtype, advantage, delta):
    result, grad = one_token(target, dtype, delta, advantage)
    slope = -0.4 * advantage * math.exp(delta) / 2
    assert grad[0].tolist() == pytest.approx([-slope, slope], rel=1e-5)
    assert result.metrics["clipped"].item() == 0


@pytest.mark.parametrize("gap", [25.0, -25.0])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_a_reference_further_away_than_20_is_held_and_has_no_gradient(target, dtype, gap):
    ref = torch.tensor([math.log(0.5) + gap], dtype=dtype)
    result, grad = one_token(target, dtype, 0.0, 0.0, kl_coef=0.3, ref_log_probs=ref)
    bounded = math.copysign(20, gap)
    assert result.loss.item() == pytest.approx(0.4 * 0.3 * (math.exp(bounded) - 1 - bounded), rel=1e-5)
    assert (grad == 0).all()


def test_no_advantage_means_no_gradient_at_any_ratio(target):
    for log_ratio in (-3.0, 0.0, 3.0):
        assert (one_token(target, F32, log_ratio, 0.0)[1] == 0).all()
