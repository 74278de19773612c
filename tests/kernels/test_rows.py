"""Rows that do not count: ignored labels, zero weights, zero upstream gradients, no tokens at all."""

import math

import pytest
import torch

from tests.kernels.oracle import (
    BF16,
    F32,
    F64,
    assert_gradient,
    assert_ppo_gradient,
    assert_values,
    exact_gradient,
    exact_ppo,
    exact_values,
    gradient,
    make_logits,
    make_ppo,
    ppo_gradient,
    upstream,
)

ALL = {"clip_ratio_dual": 3.0, "kl_coef": 0.1, "entropy_coef": 0.05, "temperature": 0.7}


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("ignore_index", [-100, 0, 36, 2**40])
def test_ignored_rows_are_not_read(target, dtype, ignore_index):
    logits, labels = make_logits(12, 37, dtype)
    labels = labels.clamp(1, 35)
    ignored, kept = torch.tensor([0, 3, 4, 11]), torch.tensor([1, 2, 5, 6, 7, 8, 9, 10])
    logits[ignored], labels[ignored] = math.nan, ignore_index
    grads = upstream(12)
    result = target.logprob_entropy(logits, labels, ignore_index=ignore_index, return_collision=True)
    assert all((value[ignored] == 0).all() for value in result)
    assert_values(type(result)(*(value[kept] for value in result)), exact_values(logits[kept], labels[kept]))
    grad = gradient(target, logits, labels, grads, ignore_index=ignore_index)
    assert (grad[ignored] == 0).all()
    exact = exact_gradient(logits[kept], labels[kept], tuple(part[kept] for part in grads))
    assert_gradient(grad[kept], exact, target.unit(dtype))


def test_rows_without_upstream_gradient_get_exactly_zero(target):
    logits, labels = make_logits(6, 37)
    still, moved = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    logits[1] = math.nan
    grads = torch.stack(upstream(6))
    grads[:, still] = 0
    grad = gradient(target, logits, labels, tuple(grads))
    assert (grad[still] == 0).all()
    assert_gradient(grad[moved], exact_gradient(logits[moved], labels[moved], tuple(grads[:, moved])))


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_upstream_gradients_moves_a_row(target, which):
    logits, labels = make_logits(4, 37)
    grads = torch.stack(upstream(4))
    grads[which] = 0
    exact = exact_gradient(logits, labels, tuple(grads))
    assert (exact != 0).any(-1).all()
    assert_gradient(gradient(target, logits, labels, tuple(grads)), exact)


@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0)])
@pytest.mark.parametrize("inplace", [False, True])
def test_no_tokens_give_empty_results_and_an_empty_gradient(target, shape, inplace):
    leaf = torch.zeros(*shape, 37, dtype=BF16, requires_grad=True)
    labels = torch.zeros(shape, dtype=torch.int64)
    options = {"return_collision": True, "inplace_backward": inplace}
    result = target.logprob_entropy(leaf * 1, labels, **options)
    assert all(tensor.shape == shape for tensor in result)
    result.log_probs.sum().backward()
    assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("dtype", [F32, F64])
def test_rows_without_weight_or_label_are_not_read_by_the_loss(target, dtype):
    logits, labels, vectors = make_ppo(12, 37, dtype)
    skipped, ignored = torch.tensor([0, 5, 6]), torch.tensor([3, 11])
    unread, kept = torch.cat([skipped, ignored]), torch.tensor([1, 2, 4, 7, 8, 9, 10])
    vectors["loss_weights"][skipped] = 0
    labels[ignored], labels[skipped] = -100, 10**6
    logits[unread] = math.nan
    for name in ("old_log_probs", "advantages", "ref_log_probs"):
        vectors[name][unread] = math.nan
    result = target.ppo_loss(logits, labels, **vectors, **ALL)
    loss, grad = ppo_gradient(target, logits, labels, vectors, 1.7, **ALL)
    expected, exact = exact_ppo(
        logits[kept], labels[kept], {key: value[kept] for key, value in vectors.items()}, 1.7, **ALL
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (grad[unread] == 0).all()
    assert_ppo_gradient(grad[kept], exact)
    assert (result.log_probs[unread] == 0).all() and (result.entropy[unread] == 0).all()
    assert result.metrics["num_tokens"].item() == len(kept)
    assert all(math.isfinite(value.item()) for value in result.metrics.values())


@pytest.mark.parametrize("num_tokens", [0, 4])
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_to_read_gives_a_zero_loss_with_a_zero_gradient(target, num_tokens, inplace):
    leaf = torch.full((num_tokens, 7), math.nan, requires_grad=True)
    zeros = torch.zeros(num_tokens)
    vectors = dict.fromkeys(("old_log_probs", "advantages", "loss_weights"), zeros)
    logits = leaf.clone()
    result = target.ppo_loss(logits, zeros.long(), **vectors, inplace_backward=inplace)
    (grad,) = torch.autograd.grad(result.loss, logits)
    assert result.loss.item() == 0
    assert torch.equal(grad, torch.zeros(num_tokens, 7))
    assert all(value.item() == 0 for value in result.metrics.values())


def test_a_negative_weight_counts(target):
    logits, labels, vectors = make_ppo(6, 37)
    vectors["loss_weights"] *= -1
    loss, grad = ppo_gradient(target, logits, labels, vectors, **ALL)
    expected, exact = exact_ppo(logits, labels, vectors, **ALL)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_ppo_gradient(grad, exact)


def test_a_row_without_weight_gets_zero_whatever_is_upstream(target):
    logits, labels, vectors = make_ppo(6, 37)
    vectors["loss_weights"][2] = 0
    grad = ppo_gradient(target, logits, labels, vectors, math.inf)[1]
    assert (grad[2] == 0).all() and not grad[0].isfinite().all()
