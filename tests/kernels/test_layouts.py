"""Logits of any leading shape that two strides describe; rows further apart than 32 bits can count."""

import math

import pytest
import torch

from tests.kernels.oracle import (
    BF16,
    F32,
    assert_gradient,
    assert_values,
    exact_gradient,
    exact_values,
    gradient,
    make_logits,
    upstream,
)

LAYOUTS = {
    "3-D": lambda base, wide: base.view(4, 3, 50),
    "4-D": lambda base, wide: base.view(2, 2, 3, 50),
    "transposed": lambda base, wide: base.view(4, 3, 50).transpose(0, 1),
    "next-token slice": lambda base, wide: base.view(4, 3, 50)[:, :-1],
    "transposed slice": lambda base, wide: base.view(4, 3, 50)[:, 1:].transpose(0, 1),
    "two strides of four": lambda base, wide: base.view(2, 2, 3, 50).permute(2, 0, 1, 3),
    "wide rows": lambda base, wide: wide[..., :50],
    "every second row": lambda base, wide: wide[:, ::2, 5:55],
    "broadcast rows": lambda base, wide: base[:3].unsqueeze(0).expand(4, 3, 50),
    "offset storage": lambda base, wide: base[2:],
    "odd offset": lambda base, wide: wide.view(-1)[7 : 7 + 500].view(10, 50),
    "dimensions of one": lambda base, wide: base.view(1, 12, 1, 50).transpose(0, 2),
    "one row": lambda base, wide: base[0],
}


def make_view(target, name, dtype):
    """The view is cut on the target's device: copying one there would lose its strides."""
    base = make_logits(12, 50, seed=3)[0].to(dtype)
    wide = torch.randn(4, 6, 71, generator=torch.Generator().manual_seed(4)).to(dtype)
    return LAYOUTS[name](target.put(base), target.put(wide))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_any_leading_shape_and_strides(target, name, dtype):
    logits = make_view(target, name, dtype)
    labels = torch.randint(0, 50, logits.shape[:-1], generator=torch.Generator().manual_seed(5))
    grads = upstream(labels.numel())
    result = target.logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert result.log_probs.shape == result.entropy.shape == result.collision.shape == labels.shape
    plain = logits.cpu().contiguous()
    assert_values(result, exact_values(plain, labels, 0.7))
    grad = gradient(target, logits, labels, grads, temperature=0.7)
    assert_gradient(grad, exact_gradient(plain, labels, grads, 0.7), target.unit(dtype))


@pytest.mark.parametrize("name", ["transposed", "next-token slice", "wide rows", "every second row", "odd offset"])
def test_the_gradient_over_the_logits_keeps_their_strides_and_their_neighbours(target, name):
    logits = make_view(target, name, F32)
    storage = torch.empty(0, device=logits.device).set_(logits.untyped_storage())
    before, values = storage.clone(), logits.clone()
    labels = torch.randint(0, 50, logits.shape[:-1], generator=torch.Generator().manual_seed(5))
    grads = upstream(labels.numel())
    expected = gradient(target, values, labels, grads)
    view = logits.requires_grad_().view_as(logits)
    result = target.logprob_entropy(view, labels, entropy_requires_grad=True, inplace_backward=True)
    g, h = (grad.float().view_as(result.log_probs) for grad in grads)
    (grad,) = torch.autograd.grad((result.log_probs, result.entropy), view, (g, h))
    assert grad.data_ptr() == logits.data_ptr() and grad.stride() == logits.stride()
    assert torch.equal(grad.cpu(), expected)
    # Whatever lies between the rows is as it was.
    logits.detach().copy_(values.detach())
    assert torch.equal(storage, before)


def test_a_layout_of_three_strides_is_refused(target):
    logits = target.put(torch.zeros(4, 3, 2, 5)).permute(2, 1, 0, 3)
    with pytest.raises(ValueError, match=r"shape \[2, 3, 4, 5\] have the strides \[5, 10, 30, 1\].*3 strides"):
        target.logprob_entropy(logits, torch.zeros(2, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(2, 1), (3,), (1, 3)])
@pytest.mark.parametrize("inplace", [False, True])
def test_rows_further_apart_than_32_bits_can_count(target, shape, inplace):
    # Only the pages that are touched exist: the rows of a CPU tensor cost what they hold.
    vocab, stride = 1187, 2**31 + 64 if shape != (3,) else 2**30 + 2**29
    strides = (stride, 1) if len(shape) == 1 else (stride, vocab, 1) if shape[1] == 1 else (vocab, stride, 1)
    rows = math.prod(shape)
    values, labels = make_logits(rows, vocab, BF16)
    far = torch.empty_strided((*shape, vocab), strides, dtype=BF16, device=target.device)
    far.copy_(values.view_as(far))
    labels, grads = labels.view(shape), upstream(rows)
    expected = gradient(target, values, labels.view(-1), grads)
    view = far.requires_grad_().view_as(far)
    result = target.logprob_entropy(view, labels, entropy_requires_grad=True, inplace_backward=inplace)
    exact = exact_values(values, labels.view(-1))
    assert_values(type(result)(result.log_probs.view(-1), result.entropy.view(-1), None), exact)
    g, h = (grad.float().view_as(result.log_probs) for grad in grads)
    (grad,) = torch.autograd.grad((result.log_probs, result.entropy), view, (g, h))
    assert torch.equal(grad.cpu().view(rows, vocab), expected)
    assert (grad.data_ptr() == far.data_ptr()) == inplace
