"""The specification itself, against values worked out by hand."""

import math

import pytest
import torch

from rest_kernels import reference

F64 = torch.float64


def test_uniform_row_by_hand():
    logits = torch.full((1, 8), 3.0, dtype=F64)
    label = torch.tensor([5])
    assert reference.log_probs(logits, label, 0.7).item() == pytest.approx(-math.log(8))
    assert reference.entropy(logits, 0.7).item() == pytest.approx(math.log(8))
    assert reference.collision(logits, 0.7).item() == pytest.approx(1 / 8)


def test_temperature_and_masked_column_by_hand():
    # p = (3/4, 1/4, 0) at temperature 2.
    logits = torch.tensor([[2 * math.log(3.0), 0.0, -math.inf]], dtype=F64)
    assert reference.log_probs(logits, torch.tensor([0]), 2.0).exp().item() == pytest.approx(0.75)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert reference.entropy(logits, 2.0).item() == pytest.approx(expected)
    assert reference.collision(logits, 2.0).item() == pytest.approx(0.625)


def test_entropy_gradient_is_finite_beside_masked_columns():
    logits = torch.tensor([[1.0, -math.inf, 0.0]], dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(reference.entropy(logits).sum(), logits)
    assert torch.isfinite(grad).all()
    assert grad[0, 1] == 0


@pytest.mark.parametrize("cuts", [(11,), (4, 7), (1, 5, 2, 3)])
def test_merged_shards_equal_the_whole_row_and_pass_gradcheck(cuts):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, dtype=F64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 11, (5,), generator=generator)

    def merged(logits):
        starts = torch.tensor([0, *cuts]).cumsum(0)
        shards = [
            reference.shard_stats(shard, labels - start, 0.7)
            for shard, start in zip(logits.split(cuts, -1), starts, strict=False)
        ]
        return reference.merge_shard_stats(torch.stack(shards), 0.7)

    log_probs, entropy, collision = merged(logits)
    torch.testing.assert_close(log_probs, reference.log_probs(logits, labels, 0.7))
    torch.testing.assert_close(entropy, reference.entropy(logits, 0.7))
    torch.testing.assert_close(collision, reference.collision(logits, 0.7))
    assert torch.autograd.gradcheck(merged, logits)


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual", "expected", "held"),
    [
        (2.0, 0.5, None, -1.0, False),
        (2.0, 1.1, None, -2.2, False),
        (2.0, 1.5, None, -2.4, True),
        (-2.0, 0.5, None, 1.6, True),
        (-2.0, 1.5, None, 3.0, False),
        (-2.0, 9.0, None, 18.0, False),
        (-2.0, 9.0, 3.0, 6.0, True),
        (2.0, 9.0, 3.0, -2.4, True),
        (0.0, 9.0, 3.0, 0.0, False),
        (0.0, 0.5, None, 0.0, False),
    ],
)
def test_the_clipped_loss_and_where_the_clip_holds_by_hand(advantage, ratio, dual, expected, held):
    log_probs = torch.tensor(math.log(ratio), dtype=F64, requires_grad=True)
    old, advantages = torch.tensor(0.0, dtype=F64), torch.tensor(advantage, dtype=F64)
    loss = reference.ppo_token_loss(log_probs, old, advantages, clip_ratio_dual=dual)
    assert loss.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient.item() == pytest.approx(0.0 if held else expected)
    assert reference.held_by_clip(log_probs.exp(), advantages, clip_ratio_dual=dual).item() is held


@pytest.mark.parametrize("gap", [20.5, -20.5, 1e30, -math.inf])
def test_log_ratios_out_of_bounds_are_held_and_have_no_gradient(gap):
    log_ratio = torch.tensor(gap, dtype=F64, requires_grad=True)
    bounded = reference.bounded_log_ratio(log_ratio)
    assert bounded.item() == math.copysign(20.0, gap)
    assert torch.autograd.grad(bounded, log_ratio)[0].item() == 0.0


def test_kl_estimate_by_hand():
    policy, ref = torch.tensor(math.log(0.2), dtype=F64), torch.tensor(math.log(0.4), dtype=F64)
    assert reference.kl_to_reference(policy, ref).item() == pytest.approx(2 - 1 - math.log(2))
    assert reference.kl_to_reference(policy, policy).item() == 0


def test_a_kl_term_needs_a_reference():
    logits, label, one = torch.zeros(1, 8, dtype=F64), torch.tensor([5]), torch.ones(1, dtype=F64)
    with pytest.raises(ValueError, match="ref_log_probs is None"):
        reference.ppo_loss(logits, label, one, one, one, kl_coef=0.1)
