"""vocab_parallel_ppo_loss on one shard, against float64 autograd of the reference."""

import math

import pytest
import torch

from rest_kernels import reference
from rest_kernels.settings import PPOSettings
from rest_kernels.shard import VocabShard
from rest_kernels.tokens import PPOInputs, Softmax, Tokens
from tests.kernels.oracle import (
    BF16,
    ENTROPY,
    F16,
    F32,
    F64,
    LOG_PROB,
    assert_ppo_gradient,
    assert_values,
    exact_gradient,
    exact_ppo,
    exact_values,
    make_ppo,
    ppo_gradient,
)

SETTINGS = {
    "plain": {},
    "clip higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "wide clip": {"clip_ratio_low": 1.0, "clip_ratio_high": 100.0},
    "dual clip": {"clip_ratio_dual": 1.5},
    "kl": {"kl_coef": 0.1},
    "entropy": {"entropy_coef": 0.05},
    "all": {"clip_ratio_dual": 3.0, "kl_coef": 0.1, "entropy_coef": 0.05},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16])
def test_loss_and_gradient_match_float64(target, name, dtype):
    logits, labels, vectors = make_ppo(24, 211, dtype)
    settings = SETTINGS[name] | {"temperature": 0.7}
    expected, exact = exact_ppo(logits, labels, vectors, 1.7, **settings)
    loss, grad = ppo_gradient(target, logits, labels, vectors, 1.7, **settings)
    assert loss.dtype == (F64 if dtype == F64 else F32) and grad.dtype == dtype
    if dtype == F64:
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        assert (grad - exact).abs().max() <= 1e-12 * exact.abs().max()
    else:
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert_ppo_gradient(grad, exact, target.unit(dtype))


@pytest.mark.parametrize("scale", [1.0, -2.3, 1e-3, 0.0])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_gradient_scales_with_what_is_upstream(target, scale, name):
    logits, labels, vectors = make_ppo(8, 211)
    settings = SETTINGS[name] | {"temperature": 0.7}
    grad = ppo_gradient(target, logits, labels, vectors, scale, **settings)[1]
    assert_ppo_gradient(grad, exact_ppo(logits, labels, vectors, scale, **settings)[1])


@pytest.mark.parametrize("num_tokens", [127, 129])
def test_sums_over_more_tokens_than_one_program_takes(target, num_tokens):
    logits, labels, vectors = make_ppo(num_tokens, 5)
    settings = SETTINGS["all"] | {"temperature": 0.7}
    expected = exact_ppo(logits, labels, vectors, **settings)[0]
    result = target.ppo_loss(logits, labels, **vectors, **settings)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert result.metrics["num_tokens"].item() == num_tokens


@pytest.mark.parametrize("dtype", [F64])
def test_gradcheck_of_the_loss(target, dtype):
    logits, labels, vectors = make_ppo(5, 7, dtype)

    def loss(logits):
        return target.ppo_loss(logits, labels, **vectors, **SETTINGS["all"], temperature=0.7).loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("dtype", [F32, F64])
def test_metrics_are_sums_over_the_weighted_tokens(target, dtype):
    logits, labels, vectors = make_ppo(32, 211, dtype)
    vectors["loss_weights"][::3] = 0
    read = vectors["loss_weights"] != 0
    result = target.ppo_loss(logits.requires_grad_(), labels, **vectors, temperature=0.7)
    policy, entropy, collision = exact_values(logits, labels, 0.7)
    delta = (policy - vectors["old_log_probs"].double())[read]
    ratio, negative = delta.exp(), vectors["advantages"][read] < 0
    high, low = ~negative & (ratio > 1.2), negative & (ratio < 0.8)
    expected = {
        "num_tokens": read.sum(),
        "clipped": (high | low).sum(),
        "clipped_low": low.sum(),
        "approx_kl": (ratio - 1 - delta).sum(),
        "ratio": ratio.sum(),
        "entropy": entropy[read].sum(),
    }
    assert result.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name].shape == () and result.metrics[name].dtype == dtype
        assert result.metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
        assert not result.metrics[name].requires_grad
    assert 0 < expected["clipped_low"] < expected["clipped"] < expected["num_tokens"]
    kept = (policy.masked_fill(~read, 0), entropy.masked_fill(~read, 0), collision)
    assert ((result.log_probs - kept[0]).abs() <= LOG_PROB * (1 + kept[0].abs())).all()
    assert ((result.entropy - kept[1]).abs() <= ENTROPY).all()
    assert not result.log_probs.requires_grad and not result.entropy.requires_grad


@pytest.mark.parametrize("delta", [1e-4, 1e-3, -1e-3, 1e-2, 0.1, 0.3, -0.3])
def test_the_kl_metric_of_a_small_step_keeps_its_digits(target, delta):
    # e^d - 1 - d is d^2 / 2 = 5e-7: the plain difference would round it by 2e-4. One token: errors must not average.
    logits, labels, vectors = make_ppo(1, 37)
    policy = target.ppo_loss(logits, labels, **vectors).log_probs
    for part in (0.51, 0.63, 0.79, 0.97):
        vectors["old_log_probs"] = policy - part * delta
        found = target.ppo_loss(logits, labels, **vectors).metrics["approx_kl"].item()
        exact = policy.double() - vectors["old_log_probs"].double()
        assert found == pytest.approx((exact.expm1() - exact).item(), rel=1e-4)


@pytest.mark.parametrize("delta", [1e-3, -1e-3, 0.1, 3.0])
def test_the_kl_penalty_of_a_small_step_keeps_its_digits(target, delta):
    logits, labels, vectors = make_ppo(16, 37)
    policy = target.ppo_loss(logits, labels, **vectors).log_probs
    vectors |= {"ref_log_probs": policy + delta, "advantages": torch.zeros(16)}
    found, grad = ppo_gradient(target, logits, labels, vectors, kl_coef=0.3)
    weights, gap = vectors["loss_weights"].double(), vectors["ref_log_probs"].double() - policy.double()
    assert found.item() == pytest.approx(0.3 * (weights * (gap.expm1() - gap)).sum().item(), rel=1e-4)
    # dKL/dlog p = 1 - e^gap.
    exact = exact_gradient(logits, labels, (-0.3 * weights * gap.expm1(), torch.zeros(16, dtype=F64)))
    assert (grad - exact).abs().max() <= 1e-5 * exact.abs().max()


def ppo_rows(target, entropy_coef):
    """The backend's own pass from statistics to the derivatives."""
    logits, labels, vectors = make_ppo(16, 37)
    softmax = Softmax(VocabShard(0, 37, 37, None), 0.7)
    tokens = Tokens(target.put(labels), -100, target.put(vectors["loss_weights"]))
    inputs = PPOInputs(target.put(vectors["old_log_probs"]), target.put(vectors["advantages"]), None)
    stats = target.module.softmax_stats(target.put(logits), tokens, softmax, False).unsqueeze(0)
    settings = PPOSettings(0.2, 0.2, None, 0.0, entropy_coef)
    return target.module.ppo_rows(stats, tokens, softmax, inputs, settings), vectors["loss_weights"]


def test_an_entropy_bonus_leaves_the_gradient_of_log_prob_as_it_was(target):
    without, _ = ppo_rows(target, 0.0)
    with_it, weights = ppo_rows(target, 0.05)
    assert without.entropy_grad is None
    assert torch.equal(without.log_prob_grad, with_it.log_prob_grad)
    torch.testing.assert_close(with_it.entropy_grad.cpu(), -0.05 * weights, rtol=1e-6, atol=0)


def test_an_entropy_bonus_adds_its_own_gradient(target):
    logits, labels, vectors = make_ppo(16, 37)
    without = ppo_gradient(target, logits, labels, vectors, temperature=0.7)[1]
    with_it = ppo_gradient(target, logits, labels, vectors, temperature=0.7, entropy_coef=0.05)[1]
    exact_logits = logits.double().requires_grad_()
    bonus = -0.05 * (vectors["loss_weights"].double() * reference.entropy(exact_logits, 0.7)).sum()
    (exact,) = torch.autograd.grad(bonus, exact_logits)
    assert (with_it - without - exact).abs().max() <= 3e-6 * without.abs().max()
    assert exact.abs().max() > 1e-3 * without.abs().max()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("logits_dtype", [F32, BF16])
def test_vectors_of_any_floating_dtype_are_read_as_float32(target, dtype, logits_dtype):
    logits, labels, vectors = make_ppo(8, 37, logits_dtype)
    vectors = {name: vector.to(getattr(torch, dtype)) for name, vector in vectors.items()}
    settings = SETTINGS["all"] | {"temperature": 0.7}
    loss, grad = ppo_gradient(target, logits, labels, vectors, **settings)
    plain = {name: vector.float() for name, vector in vectors.items()}
    assert loss.dtype == F32
    for found, same in zip((loss, grad), ppo_gradient(target, logits, labels, plain, **settings), strict=True):
        assert torch.equal(found, same)


@pytest.mark.parametrize("padding", [50.0, math.nan])
def test_sequence_first_layout_with_padding_columns(target, padding):
    logits, labels, vectors = make_ppo(12, 37)
    padded = torch.nn.functional.pad(logits, (0, 3), value=padding).view(4, 3, 40)
    shaped = {key: value.view(4, 3) for key, value in vectors.items()}
    settings = SETTINGS["all"] | {"temperature": 0.7}
    leaf = padded.requires_grad_()
    result = target.ppo_loss(leaf, labels.view(4, 3), **shaped, **settings, vocab_size=37)
    (grad,) = torch.autograd.grad(result.loss * 1.7, leaf)
    expected, exact = exact_ppo(logits, labels, vectors, 1.7, **settings)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_ppo_gradient(grad[..., :37].reshape(12, 37), exact)
    assert (grad[..., 37:] == 0).all()
    found = target.logprob_entropy(padded.detach(), labels.view(4, 3), temperature=0.7, vocab_size=37)
    assert torch.equal(found.log_probs, result.log_probs) and torch.equal(found.entropy, result.entropy)
    assert_values(type(found)(*(x.view(-1) for x in found[:2]), None), exact_values(logits, labels, 0.7))


def test_inputs_stay_as_they_were_and_get_no_gradient(target):
    logits, labels, vectors = make_ppo(8, 37)
    before = {key: value.clone() for key, value in vectors.items()}
    vectors = {key: value.requires_grad_() for key, value in vectors.items()}
    leaf, logits_before = target.put(logits).requires_grad_(), logits.clone()
    settings = SETTINGS["all"] | {"temperature": 0.7}
    target.ppo_loss(leaf, labels, **vectors, **settings).loss.backward()
    assert torch.equal(leaf.detach().cpu(), logits_before)
    for name, value in vectors.items():
        assert torch.equal(value, before[name]) and value.grad is None


def test_equal_inputs_give_equal_bits(target):
    logits, labels, vectors = make_ppo(24, 1187, BF16)
    settings = SETTINGS["all"] | {"temperature": 0.7}
    first, second = (ppo_gradient(target, logits, labels, vectors, 1.7, **settings) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
