"""Logits are never changed, unless their gradient is asked to overwrite them; then nobody can read them unnoticed."""

import pytest
import torch

from rest_kernels import vocab_parallel_logprob_entropy, vocab_parallel_ppo_loss
from tests.kernels.oracle import BF16, F16, F32, make_logits, make_ppo, upstream

SETTINGS = {"entropy_coef": 0.05, "temperature": 0.7}


def outputs_of(target, logits, labels, **options):
    result = target.logprob_entropy(logits, labels, temperature=0.7, entropy_requires_grad=True, **options)
    return result.log_probs, result.entropy


def upstream_of(outputs):
    return [grad.float() for grad in upstream(len(outputs[0]))]


def make_hidden(target, dtype=F32, vocab=1187, num_tokens=6):
    """(leaf, logits, labels) on the target's device; the logits are the output of an operation."""
    leaf, labels = make_logits(num_tokens, vocab, dtype)
    leaf = target.put(leaf).requires_grad_()
    return leaf, leaf * 1, labels


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("vocab", [5, 1187, 5000])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_gradient_over_the_logits_has_the_same_bits(target, dtype, vocab, with_entropy):
    grads = []
    for inplace in (False, True):
        _, logits, labels = make_hidden(target, dtype, vocab)
        outputs = outputs_of(target, logits, labels, inplace_backward=inplace)[: 1 + with_entropy]
        address = logits.data_ptr()
        (grad,) = torch.autograd.grad(outputs, logits, upstream_of(outputs)[: 1 + with_entropy])
        assert (grad.data_ptr() == address) == inplace
        grads.append(grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_losss_gradient_over_the_logits_has_the_same_bits(target, dtype):
    values, labels, vectors = make_ppo(8, 300, dtype)
    vectors["loss_weights"][2] = 0
    grads = []
    for inplace in (False, True):
        logits = target.put(values).requires_grad_() * 1
        loss = target.ppo_loss(logits, labels, **vectors, **SETTINGS, inplace_backward=inplace).loss
        (grad,) = torch.autograd.grad(loss * 1.7, logits)
        assert (grad.data_ptr() == logits.data_ptr()) == inplace
        grads.append(grad)
    assert torch.equal(*grads)
    assert (grads[0][2] == 0).all() and (grads[0] != 0).any()


def test_the_gradient_reaches_what_is_before_the_logits(target):
    grads = []
    for inplace in (False, True):
        leaf, logits, labels = make_hidden(target)
        outputs = outputs_of(target, logits * 2, labels, inplace_backward=inplace)
        grads += torch.autograd.grad(outputs, leaf, upstream_of(outputs))
    assert torch.equal(*grads) and (grads[0] != 0).any()


def test_padding_columns_are_overwritten_with_zero(target):
    _, logits, labels = make_hidden(target, vocab=300)
    outputs = outputs_of(target, logits, labels % 257, vocab_size=257, inplace_backward=True)
    (grad,) = torch.autograd.grad(outputs, logits, upstream_of(outputs))
    assert (grad[:, 257:] == 0).all() and (logits[:, 257:] == 0).all()


def test_one_row_without_leading_dimensions(target):
    values, labels = make_logits(1, 300)
    grads = []
    for inplace in (False, True):
        logits = target.put(values[0]).requires_grad_() * 1
        outputs = outputs_of(target, logits, labels[0], inplace_backward=inplace)
        grads += torch.autograd.grad(outputs, logits, [grad[0].float() for grad in upstream(1)])
    assert torch.equal(*grads) and grads[0].shape == (300,) and (grads[0] != 0).any()


def test_a_second_backward_is_refused(target):
    _, logits, labels = make_hidden(target)
    outputs = outputs_of(target, logits, labels, inplace_backward=True)
    torch.autograd.grad(outputs, logits, upstream_of(outputs), retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward.*inplace_backward=True.*Pass inplace_backward=False"):
        torch.autograd.grad(outputs, logits, upstream_of(outputs))


def test_a_second_backward_of_the_loss_is_refused(target):
    values, labels, vectors = make_ppo(8, 37)
    logits = target.put(values).requires_grad_() * 1
    loss = target.ppo_loss(logits, labels, **vectors, **SETTINGS, inplace_backward=True).loss
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        torch.autograd.grad(loss, logits)


def test_another_function_that_kept_the_logits_notices(target):
    _, logits, labels = make_hidden(target)
    other = logits.square().sum()
    outputs = outputs_of(target, logits, labels, inplace_backward=True)
    torch.autograd.grad(outputs, logits, upstream_of(outputs), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(other, logits)


def test_two_passes_over_the_same_logits_cannot_both_overwrite_them(target):
    _, logits, labels = make_hidden(target)
    first = outputs_of(target, logits, labels, inplace_backward=True)
    second = outputs_of(target, logits, labels, inplace_backward=True)
    torch.autograd.grad(first, logits, upstream_of(first))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(second, logits, upstream_of(second))


def test_leaf_logits_are_not_overwritten(target):
    leaf, _, labels = make_hidden(target)
    with pytest.raises(ValueError, match="leaf tensor"):
        outputs_of(target, leaf, labels, inplace_backward=True)


def test_logits_without_a_gradient_may_say_so_anyway(target):
    values, labels = make_logits(4, 37)
    values = target.put(values)
    before = values.clone()
    plain = target.logprob_entropy(values, labels)
    told = target.logprob_entropy(values, labels, inplace_backward=True)
    assert torch.equal(plain.log_probs, told.log_probs)
    assert torch.equal(values, before)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_otherwise_inputs_stay_as_they_were_and_a_second_backward_gives_the_same_bits(target, dtype):
    _, logits, labels = make_hidden(target, dtype)
    before, labels_before, version = logits.detach().clone(), labels.clone(), logits._version
    outputs = outputs_of(target, logits, labels)
    first = torch.autograd.grad(outputs, logits, upstream_of(outputs), retain_graph=True)[0]
    second = torch.autograd.grad(outputs, logits, upstream_of(outputs))[0]
    assert torch.equal(first, second) and first.data_ptr() != logits.data_ptr()
    assert torch.equal(logits, before) and torch.equal(labels, labels_before)
    assert logits._version == version


def test_changing_the_logits_before_backward_is_an_error(target):
    _, logits, labels = make_hidden(target)
    outputs = outputs_of(target, logits, labels)
    with torch.no_grad():
        logits += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(outputs, logits, upstream_of(outputs))


@pytest.mark.parametrize("change", ["loss", "log_probs", "entropy", "metrics"])
def test_results_may_be_changed_in_place(target, change):
    """As Megatron's schedules do with the loss, and a reduction over ranks with the metrics."""
    values, labels, vectors = make_ppo(8, 300)
    grads = []
    for changed in (False, True):
        logits = target.put(values).requires_grad_() * 1
        flat = {name: target.put(vector) for name, vector in vectors.items()}
        result = vocab_parallel_ppo_loss(logits, target.put(labels), **flat, **SETTINGS, backend=target.backend)
        loss = result.loss
        if change == "loss":
            loss = loss.div_(4) if changed else loss / 4
        elif changed:
            (result.metrics["ratio"] if change == "metrics" else getattr(result, change)).zero_()
        grads += torch.autograd.grad(loss, logits)
    assert torch.equal(*grads) and (grads[0] != 0).any()


def test_log_probs_may_be_changed_in_place(target):
    _, logits, labels = make_hidden(target)
    result = vocab_parallel_logprob_entropy(logits, target.put(labels), backend=target.backend)
    (grad,) = torch.autograd.grad(result.log_probs.mul_(2).sum(), logits)
    again = vocab_parallel_logprob_entropy(logits, target.put(labels), backend=target.backend)
    assert torch.equal(grad, torch.autograd.grad((again.log_probs * 2).sum(), logits)[0])


def test_rows_that_overlap_are_not_overwritten(target):
    _, logits, labels = make_hidden(target)
    with pytest.raises(ValueError, match=r"strides \[0, 1\] overlap"):
        outputs_of(target, logits[:1].expand(6, -1), labels, inplace_backward=True)
