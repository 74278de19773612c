"""vocab_parallel_ppo_loss on one shard, against float64 autograd of the reference and hand-computed clips."""

import math

import pytest
import torch

from rest_kernels import reference, vocab_parallel_ppo_loss

F64 = torch.float64


def make(num_tokens=64, vocab=211, seed=0):
    """Logits and per-token inputs in float64, with ratios on both sides of every clip."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    logits = normal(num_tokens, vocab) * 3
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    policy = reference.log_probs(logits, labels, 0.7)
    vectors = {
        "old_log_probs": policy + normal(num_tokens) * 0.8,
        "advantages": normal(num_tokens),
        "loss_weights": normal(num_tokens).abs() / num_tokens,
        "ref_log_probs": policy + normal(num_tokens) * 0.3,
    }
    return logits, labels, vectors


SETTINGS = {
    "plain": {},
    "clip higher": {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    "dual clip": {"clip_ratio_dual": 1.5},
    "kl": {"kl_coef": 0.1},
    "entropy": {"entropy_coef": 0.05},
    "all": {"clip_ratio_dual": 3.0, "kl_coef": 0.1, "entropy_coef": 0.05},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 2**-8)])
def test_loss_and_gradient_match_float64(name, dtype, tolerance):
    # A float32 log-prob of -20 is rounded by up to 1e-6, and so is the ratio in the gradient.
    logits, labels, vectors = make()
    logits = logits.to(dtype)
    # The oracle gets the same rounded logits and vectors.
    vectors = {key: value.to(F64 if dtype == F64 else torch.float32) for key, value in vectors.items()}
    exact_logits = logits.double().requires_grad_()
    expected = reference.ppo_loss(
        exact_logits,
        labels,
        **{key: value.double() for key, value in vectors.items()},
        **SETTINGS[name],
        temperature=0.7,
    )
    (exact,) = torch.autograd.grad(expected * 1.3, exact_logits)
    leaf = logits.requires_grad_()
    result = vocab_parallel_ppo_loss(leaf, labels, **vectors, **SETTINGS[name], temperature=0.7)
    (grad,) = torch.autograd.grad(result.loss * 1.3, leaf)
    assert result.loss.dtype == (F64 if dtype == F64 else torch.float32)
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-12 if dtype == F64 else 1e-5)
    assert (grad - exact).abs().max() <= tolerance * exact.abs().max()


def test_gradcheck_of_the_loss():
    logits, labels, vectors = make(5, 7)

    def loss(logits):
        settings = SETTINGS["all"] | {"temperature": 0.7}
        return vocab_parallel_ppo_loss(logits, labels, **vectors, **settings).loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


EDGE = 1e-9
CLIPS = [
    # advantage, ratio, dual clip, ratio the loss sees, is a clip active
    (1.5, 0.5, None, 0.5, False),
    (1.5, 1.28 - EDGE, None, 1.28 - EDGE, False),
    (1.5, 1.28 + EDGE, None, 1.28, True),
    (1.5, 9.0, 3.0, 1.28, True),
    (-1.5, 0.8 - EDGE, None, 0.8, True),
    (-1.5, 0.8 + EDGE, None, 0.8 + EDGE, False),
    (-1.5, 9.0, None, 9.0, False),
    (-1.5, 3.0 - EDGE, 3.0, 3.0 - EDGE, False),
    (-1.5, 3.0 + EDGE, 3.0, 3.0, True),
    (-1.5, 0.1, 3.0, 0.8, True),
    (0.0, 0.1, 3.0, 0.1, False),
    (0.0, 9.0, 3.0, 9.0, False),
]


@pytest.mark.parametrize(("advantage", "ratio", "dual", "seen", "clipped"), CLIPS)
def test_clip_boundaries_by_hand(advantage, ratio, dual, seen, clipped):
    # Two equal logits: p_y = 1/2, d log p_y / dx_y = 1/2.
    logits = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    result = vocab_parallel_ppo_loss(
        logits,
        torch.tensor([1]),
        torch.tensor([math.log(0.5) - math.log(ratio)], dtype=F64),
        torch.tensor([advantage], dtype=F64),
        torch.tensor([0.4], dtype=F64),
        clip_ratio_high=0.28,
        clip_ratio_dual=dual,
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-0.4 * advantage * seen, abs=1e-13)
    slope = 0.0 if clipped else -0.4 * advantage * ratio / 2
    torch.testing.assert_close(logits.grad, torch.tensor([[-slope, slope]], dtype=F64), rtol=1e-12, atol=0)
    assert result.metrics["clipped"].item() == clipped
    assert result.metrics["clipped_low"].item() == (clipped and advantage < 0)
    assert result.metrics["ratio"].item() == pytest.approx(ratio)


@pytest.mark.parametrize(("advantage", "delta"), [(1.0, -25.0), (-1.0, 25.0)])
def test_a_log_ratio_beyond_20_is_held_and_has_no_gradient(advantage, delta):
    logits = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    old = torch.tensor([math.log(0.5) - delta], dtype=F64)
    weights = torch.ones(1, dtype=F64)
    result = vocab_parallel_ppo_loss(logits, torch.tensor([0]), old, weights * advantage, weights)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-advantage * math.exp(math.copysign(20, delta)))
    assert (logits.grad == 0).all()


def test_metrics_are_sums_over_the_weighted_tokens():
    logits, labels, vectors = make()
    vectors["loss_weights"][::3] = 0
    read = vectors["loss_weights"] != 0
    result = vocab_parallel_ppo_loss(logits, labels, **vectors, temperature=0.7)
    policy = reference.log_probs(logits, labels, 0.7)
    delta = (policy - vectors["old_log_probs"])[read]
    ratio, negative = delta.exp(), vectors["advantages"][read] < 0
    high, low = ~negative & (ratio > 1.2), negative & (ratio < 0.8)
    expected = {
        "num_tokens": read.sum(),
        "clipped": (high | low).sum(),
        "clipped_low": low.sum(),
        "approx_kl": (ratio - 1 - delta).sum(),
        "ratio": ratio.sum(),
        "entropy": reference.entropy(logits, 0.7)[read].sum(),
    }
    assert result.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert result.metrics[name].shape == ()
        assert result.metrics[name].item() == pytest.approx(value.item()), name
        assert not result.metrics[name].requires_grad
    assert 0 < expected["clipped_low"] < expected["clipped"] < expected["num_tokens"]
    torch.testing.assert_close(result.log_probs, policy.masked_fill(~read, 0))
    torch.testing.assert_close(result.entropy, reference.entropy(logits, 0.7).masked_fill(~read, 0))
    assert not result.log_probs.requires_grad and not result.entropy.requires_grad


def test_rows_without_weight_or_label_are_not_read():
    logits, labels, vectors = make(12, 37)
    skipped, ignored = torch.tensor([0, 5, 6]), torch.tensor([3, 11])
    unread = torch.cat([skipped, ignored])
    kept = torch.tensor([1, 2, 4, 7, 8, 9, 10])
    vectors["loss_weights"][skipped] = 0
    labels[ignored], labels[skipped] = -100, 10**6
    logits[unread] = math.nan
    for name in ("old_log_probs", "advantages", "ref_log_probs"):
        vectors[name][unread] = math.nan
    settings = SETTINGS["all"] | {"temperature": 0.7}
    exact_logits = logits[kept].requires_grad_()
    expected = reference.ppo_loss(
        exact_logits, labels[kept], **{key: value[kept] for key, value in vectors.items()}, **settings
    )
    (exact,) = torch.autograd.grad(expected, exact_logits)
    leaf = logits.requires_grad_()
    result = vocab_parallel_ppo_loss(leaf, labels, **vectors, **settings)
    result.loss.backward()
    torch.testing.assert_close(result.loss, expected)
    assert (leaf.grad[unread] == 0).all()
    torch.testing.assert_close(leaf.grad[kept], exact)
    assert result.metrics["num_tokens"].item() == len(kept)


@pytest.mark.parametrize("num_tokens", [0, 4])
def test_nothing_to_read_gives_a_zero_loss_with_a_zero_gradient(num_tokens):
    logits = torch.full((num_tokens, 7), math.nan, requires_grad=True)
    zeros = torch.zeros(num_tokens)
    result = vocab_parallel_ppo_loss(logits, torch.zeros(num_tokens, dtype=torch.int64), zeros, zeros, zeros)
    result.loss.backward()
    assert result.loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(num_tokens, 7))
    assert all(value.item() == 0 for value in result.metrics.values())


def test_sequence_first_layout_with_padding_columns():
    logits, labels, vectors = make(12, 37)
    result = vocab_parallel_ppo_loss(
        torch.nn.functional.pad(logits, (0, 3), value=50.0).view(4, 3, 40),
        labels.view(4, 3),
        **{key: value.view(4, 3) for key, value in vectors.items()},
        vocab_size=37,
        temperature=0.7,
    )
    torch.testing.assert_close(result.loss, reference.ppo_loss(logits, labels, **vectors, temperature=0.7))
    torch.testing.assert_close(result.log_probs, reference.log_probs(logits, labels, 0.7).view(4, 3))


def test_inputs_stay_as_they_were_and_get_no_gradient():
    logits, labels, vectors = make(8, 37)
    before = {key: value.clone() for key, value in vectors.items()}
    vectors = {key: value.requires_grad_() for key, value in vectors.items()}
    logits_before = logits.clone()
    settings = SETTINGS["all"] | {"temperature": 0.7}
    vocab_parallel_ppo_loss(logits.requires_grad_(), labels, **vectors, **settings).loss.backward()
    assert torch.equal(logits, logits_before)
    for name, value in vectors.items():
        assert torch.equal(value, before[name]) and value.grad is None


def test_entropy_bonus_is_the_only_difference_it_makes():
    logits, labels, vectors = make(16, 37)

    def grad(**settings):
        leaf = logits.clone().requires_grad_()
        vocab_parallel_ppo_loss(leaf, labels, **vectors, temperature=0.7, **settings).loss.backward()
        return leaf.grad

    exact_logits = logits.clone().requires_grad_()
    bonus = -0.05 * (vectors["loss_weights"] * reference.entropy(exact_logits, 0.7)).sum()
    (exact,) = torch.autograd.grad(bonus, exact_logits)
    torch.testing.assert_close(grad(entropy_coef=0.05) - grad(), exact, rtol=1e-10, atol=1e-14)


BAD_ARGUMENTS = {
    "dual clip of one": (ValueError, "clip_ratio_dual is 1.0", {"clip_ratio_dual": 1.0}),
    "dual clip nan": (ValueError, "clip_ratio_dual is nan", {"clip_ratio_dual": math.nan}),
    "negative low clip": (ValueError, "clip_ratio_low is -0.1", {"clip_ratio_low": -0.1}),
    "low clip above one": (ValueError, "clip_ratio_low is 1.5", {"clip_ratio_low": 1.5}),
    "negative high clip": (ValueError, "clip_ratio_high is -0.1", {"clip_ratio_high": -0.1}),
    "infinite high clip": (ValueError, "clip_ratio_high is inf", {"clip_ratio_high": math.inf}),
    "kl without reference": (ValueError, "ref_log_probs is None", {"kl_coef": 0.1}),
    "nan kl_coef": (ValueError, "kl_coef is nan", {"kl_coef": math.nan}),
    "nan entropy_coef": (ValueError, "entropy_coef is nan", {"entropy_coef": math.nan}),
    "temperature": (ValueError, "temperature is 0", {"temperature": 0.0}),
    "advantage shape": (
        ValueError,
        r"advantages has the shape \[1\]; labels have \[3\]",
        {"advantages": torch.ones(1)},
    ),
    "integer weights": (TypeError, "loss_weights is torch.int64", {"loss_weights": torch.ones(3, dtype=torch.int64)}),
    "reference shape": (ValueError, "ref_log_probs has the shape", {"ref_log_probs": torch.ones(3, 1)}),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name):
    error, message, change = BAD_ARGUMENTS[name]
    arguments = {
        "logits": torch.zeros(3, 7),
        "labels": torch.zeros(3, dtype=torch.int64),
        "old_log_probs": torch.zeros(3),
        "advantages": torch.ones(3),
        "loss_weights": torch.ones(3),
    }
    with pytest.raises(error, match=message):
        vocab_parallel_ppo_loss(**(arguments | change))
