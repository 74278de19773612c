"""`rest_megatron.method.ratio`: GSPO."""

import math

import pytest
import torch

from rest_megatron.method.aggregation import loss_weights
from rest_megatron.method.ratio import sequence_ppo_loss

LENGTHS = [3, 1, 6, 2]
CLIPS = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3}


def make_batch(seed: int, spread: float = 0.3):
    """(log_probs with gradient, old_log_probs, advantages, sequence_index), float64, of four answers."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS))
    old = -torch.rand(12, dtype=torch.float64, generator=generator) * 3
    log_probs = (old + spread * torch.randn(12, dtype=torch.float64, generator=generator)).requires_grad_()
    advantages = torch.randn(4, dtype=torch.float64, generator=generator)[index]
    return log_probs, old, advantages, index


def plain_gspo(log_probs, old_log_probs, advantages, index):
    """Eq. 5 and 7 of the paper, answer by answer."""
    losses = []
    for i in range(4):
        own = index == i
        ratio = (log_probs[own] - old_log_probs[own]).mean().exp()
        advantage = advantages[own][0]
        losses.append(-torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_with_equal_token_weights_it_is_gspo(seed, spread):
    log_probs, old, advantages, index = make_batch(seed, spread)
    weights = loss_weights(torch.ones(12), index, 4, "seq-mean-token-mean", 12.0, 8).double()
    loss, _ = sequence_ppo_loss(log_probs, old, advantages, weights, index, 4, **CLIPS)
    expected = plain_gspo(log_probs, old, advantages, index)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-8)
    gradients = [torch.autograd.grad(x, log_probs)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_each_token_moves_by_its_own_weight(seed):
    log_probs, old, advantages, index = make_batch(seed)
    weights = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 12
    loss, _ = sequence_ppo_loss(log_probs, old, advantages, weights, index, 4, **CLIPS)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    for t in range(12):
        own = index == index[t]
        ratio = math.exp((log_probs - old)[own].mean().item())
        advantage = advantages[t].item()
        held = ratio > 1.3 if advantage > 0 else ratio < 0.8
        expected = 0.0 if held else -weights[t].item() * advantage * ratio
        assert gradient[t].item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_metrics_by_hand():
    index = torch.tensor([0, 0, 1, 1, 2, 3])
    old = torch.zeros(6, dtype=torch.float64)
    gap = torch.tensor([0.9, 0.1, -0.9, -0.1, -1.0, 0.5], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.5, 0.0], dtype=torch.float64)
    loss, metrics = sequence_ppo_loss(gap, old, advantages, weights, index, 4, **CLIPS)
    high, low, free = math.exp(0.5), math.exp(-0.5), math.exp(-1.0)
    assert loss.item() == pytest.approx(-0.5 * 1.3 + 0.5 * 0.8 - 0.5 * free)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "num_tokens": 5,
            "clipped": 4,
            "clipped_low": 2,
            "approx_kl": sum(math.exp(x) - 1 - x for x in [0.9, 0.1, -0.9, -0.1, -1.0]),
            "ratio": 2 * high + 2 * low + free,
        }
    )


def test_any_cut_into_micro_batches_gives_the_same_loss_and_metrics():
    log_probs, old, advantages, index = make_batch(0)
    weights = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, metrics = sequence_ppo_loss(log_probs, old, advantages, weights, index, 4, **CLIPS)
    total, sums = 0.0, dict.fromkeys(metrics, 0.0)
    for part in ([2], [0, 3], [1]):
        mine = torch.cat([(index == i).nonzero().flatten() for i in part])
        local = torch.cat([torch.full((LENGTHS[i],), n) for n, i in enumerate(part)])
        vectors = (x[mine] for x in (log_probs, old, advantages, weights))
        loss, own = sequence_ppo_loss(*vectors, local, len(part), **CLIPS)
        total += loss
        sums = {name: sums[name] + own[name] for name in sums}
    torch.testing.assert_close(total, whole)
    for name, value in metrics.items():
        torch.testing.assert_close(sums[name], value)


def test_tokens_without_weight_count_in_the_ratio_of_their_answer():
    old = torch.zeros(2)
    weights = torch.tensor([1.0, 0.0])
    index = torch.zeros(2, dtype=torch.int64)
    log_probs = torch.tensor([-0.2, -0.4])
    loss, metrics = sequence_ppo_loss(log_probs, old, torch.ones(2), weights, index, 1, **CLIPS)
    assert loss.item() == pytest.approx(-math.exp(-0.3))
    assert metrics["num_tokens"].item() == 1


@pytest.mark.parametrize("gap", [1e4, -1e4, 1e30])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_ratios_out_of_bounds_stay_finite_and_have_no_gradient(gap, advantage):
    log_probs = torch.full((3,), gap, requires_grad=True)
    index = torch.zeros(3, dtype=torch.int64)
    ones = torch.ones(3)
    loss, metrics = sequence_ppo_loss(log_probs, torch.zeros(3), advantage * ones, ones, index, 1, **CLIPS)
    loss.backward()
    assert torch.isfinite(loss)
    assert log_probs.grad.tolist() == [0.0, 0.0, 0.0]
    assert all(torch.isfinite(value) for value in metrics.values())


def test_no_tokens_give_a_loss_of_zero_with_a_gradient():
    empty = torch.empty(0, requires_grad=True)
    constant = torch.empty(0)
    loss, metrics = sequence_ppo_loss(empty, constant, constant, constant, constant.long(), 0, **CLIPS)
    loss.backward()
    assert loss.item() == 0.0
    assert {value.item() for value in metrics.values()} == {0.0}


def test_constants_get_no_gradient():
    log_probs, old, advantages, index = make_batch(0)
    loss, metrics = sequence_ppo_loss(log_probs, old, advantages, torch.ones(12), index, 4, **CLIPS)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
