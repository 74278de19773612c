"""The losses from hidden states, against float64 autograd through the whole product."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rest_kernels import linear_logprob_entropy, linear_ppo_loss
from tests.kernels.linear_cases import HIDDEN, SETTINGS, VOCAB, exact_ppo, exact_stats, make
from tests.kernels.meter import PeakMemory
from tests.kernels.oracle import BF16, F32, F64


def run_ppo(target, hidden, weight, labels, vectors, scale=1.0, **options):
    """(result, hidden's gradient, weight's gradient), on the CPU."""
    leaves = [target.put(tensor).detach().requires_grad_() for tensor in (hidden, weight)]
    vectors = {name: target.put(value) for name, value in vectors.items()}
    result = linear_ppo_loss(*leaves, target.put(labels), **vectors, **options, backend=target.backend)
    return result, *(grad.cpu() for grad in torch.autograd.grad(result.loss * scale, leaves))


def relative_error(value, exact):
    return float((value.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
@pytest.mark.parametrize(("dtype", "bar"), [(F64, 1e-12), (F32, 2e-6), (BF16, 4e-2)])
def test_loss_and_gradients_match_float64(target, dtype, bar, chunk_size):
    hidden, weight, labels, vectors = make(dtype=dtype)
    loss, *exact = exact_ppo(hidden, weight, labels, vectors, SETTINGS, scale=1.7)
    result, *grads = run_ppo(target, hidden, weight, labels, vectors, 1.7, chunk_size=chunk_size, **SETTINGS)
    assert result.loss.item() == pytest.approx(loss.item(), rel=10 * bar, abs=bar)
    for grad, want in zip(grads, exact, strict=True):
        assert grad.dtype == dtype and relative_error(grad, want) <= bar


def test_tokens_and_metrics_are_those_of_the_logits(target):
    hidden, weight, labels, vectors = make()
    result, *_ = run_ppo(target, hidden, weight, labels, vectors, chunk_size=5, **SETTINGS)
    logits = target.put(hidden) @ target.put(weight).t()
    whole = target.ppo_loss(logits, labels, **vectors, **SETTINGS)
    torch.testing.assert_close(result.log_probs.cpu(), whole.log_probs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.entropy.cpu(), whole.entropy, rtol=1e-6, atol=2e-6)
    assert result.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        assert result.metrics[name].item() == pytest.approx(value.item(), rel=1e-5), name
    assert not any(value.requires_grad for value in (result.log_probs, result.entropy, *result.metrics.values()))


def test_rows_without_weight_or_label_are_not_read(target):
    hidden, weight, labels, vectors = make()
    unread = (vectors["loss_weights"] == 0) | (labels == -100)
    clean = run_ppo(target, hidden, weight, labels, vectors, **SETTINGS)
    hidden = hidden.masked_fill(unread.unsqueeze(-1), math.nan)
    result, hidden_grad, weight_grad = run_ppo(target, hidden, weight, labels, vectors, **SETTINGS)
    assert (hidden_grad[unread] == 0).all()
    assert torch.equal(hidden_grad, clean[1]) and torch.equal(weight_grad, clean[2])
    assert (result.log_probs.cpu()[unread] == 0).all()


class Products(TorchDispatchMode):
    """Multiply-adds of every matrix product."""

    def __init__(self):
        super().__init__()
        self.multiply_adds = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.multiply_adds.append(left.shape[0] * left.shape[1] * right.shape[1])
        return function(*args, **(kwargs or {}))


def test_the_policy_loss_costs_three_products_of_the_rows_that_count():
    hidden, weight, labels, vectors = make(num_tokens=64)
    kept = int(((vectors["loss_weights"] != 0) & (labels != -100)).sum())
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    one = kept * HIDDEN * VOCAB
    with Products() as products:
        loss = linear_ppo_loss(*leaves, labels, **vectors, chunk_size=10, kl_coef=0.1).loss
        torch.autograd.grad(loss, leaves)
    assert sum(products.multiply_adds) == 3 * one
    with Products() as products, torch.no_grad():
        linear_ppo_loss(*leaves, labels, **vectors, chunk_size=10)
    assert sum(products.multiply_adds) == one
    with Products() as products:
        loss = linear_ppo_loss(hidden, weight.detach(), labels, **vectors, chunk_size=10).loss
        torch.autograd.grad(loss, hidden)
    assert sum(products.multiply_adds) == 2 * one


def test_the_weights_gradient_is_summed_in_float32(target):
    """512 equal terms: summed in bfloat16, one is too small beside 256 of them to be added at all."""
    if target.interpreted:
        pytest.skip("the products are torch's own on every backend")
    hidden, weight, labels, vectors = make(num_tokens=2, width=8, vocab=40, dtype=BF16)
    hidden, labels = hidden[1:].expand(512, 8).contiguous(), labels[1:].expand(512).contiguous()
    vectors = {name: value[1:].expand(512).contiguous() for name, value in vectors.items()}
    exact = exact_ppo(hidden, weight, labels, vectors, {"temperature": 0.7})[2]
    grad = run_ppo(target, hidden, weight, labels, vectors, chunk_size=1, temperature=0.7)[2]
    assert relative_error(grad, exact) <= 2**-7


def test_peak_memory_is_one_chunk_of_logits():
    num_tokens, width, vocab, chunk_size = 256, 32, 16384, 32
    hidden, weight, labels, vectors = make(num_tokens, width, vocab, BF16)
    vectors["loss_weights"][:] = 1 / num_tokens
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    with PeakMemory() as memory:
        result = linear_ppo_loss(*leaves, labels, **vectors, chunk_size=chunk_size, temperature=0.7)
        grads = torch.autograd.grad(result.loss, leaves)
    chunk = chunk_size * vocab * 2
    master = vocab * width * 4
    outputs = sum(grad.nbytes for grad in grads)
    # Besides the chunk: the float32 sum of the weight's gradient, scratch of the row passes, the results.
    assert memory.peak - outputs <= chunk + master + 5 * 2**20
    assert memory.peak < num_tokens * vocab * 2 + master


@pytest.mark.parametrize("shape", [(24,), (6, 4), (2, 3, 4)])
def test_any_leading_shape(target, shape):
    hidden, weight, labels, vectors = make()
    flat = run_ppo(target, hidden, weight, labels, vectors)
    vectors = {name: value.view(shape) for name, value in vectors.items()}
    result, hidden_grad, weight_grad = run_ppo(target, hidden.view(*shape, HIDDEN), weight, labels.view(shape), vectors)
    assert result.log_probs.shape == result.entropy.shape == shape
    assert torch.equal(hidden_grad, flat[1].view(*shape, HIDDEN)) and torch.equal(weight_grad, flat[2])


def test_a_second_backward_gives_the_same_bits(target):
    hidden, weight, labels, vectors = make()
    leaves = [target.put(tensor).requires_grad_() for tensor in (hidden, weight)]
    vectors = {name: target.put(value) for name, value in vectors.items()}
    loss = linear_ppo_loss(*leaves, target.put(labels), **vectors, backend=target.backend).loss
    first = torch.autograd.grad(loss * 1.7, leaves, retain_graph=True)
    second = torch.autograd.grad(loss * 1.7, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_gradients_are_freed_by_the_backward_pass(target):
    """A schedule may hold the last loss while it makes the next; the weight's gradient in float32 is large."""
    hidden, weight, labels, vectors = make()
    leaves = [target.put(tensor).requires_grad_() for tensor in (hidden, weight)]
    vectors = {name: target.put(value) for name, value in vectors.items()}
    loss = linear_ppo_loss(*leaves, target.put(labels), **vectors, backend=target.backend).loss
    held = loss.grad_fn
    torch.autograd.grad(loss, leaves)
    with pytest.raises(RuntimeError, match="second time"):
        held.saved_tensors  # noqa: B018


def test_results_may_be_changed_in_place(target):
    hidden, weight, labels, vectors = make()
    plain = run_ppo(target, hidden, weight, labels, vectors)[2]
    leaves = [target.put(tensor).requires_grad_() for tensor in (hidden, weight)]
    flat = {name: target.put(value) for name, value in vectors.items()}
    result = linear_ppo_loss(*leaves, target.put(labels), **flat, backend=target.backend)
    for value in (result.log_probs, result.entropy, *result.metrics.values()):
        value.zero_()
    loss = result.loss.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves[1])[0].cpu(), 2 * plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_tokens", [0, 5])
def test_nothing_to_read_gives_a_zero_loss_and_zero_gradients(target, num_tokens):
    hidden, weight, labels, vectors = make(num_tokens)
    vectors["loss_weights"] = torch.zeros(num_tokens)
    result, *grads = run_ppo(target, hidden * math.nan, weight, labels, vectors, **SETTINGS)
    assert result.loss.item() == 0
    assert [grad.shape for grad in grads] == [hidden.shape, weight.shape]
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("chunk_size", [5, 4096])
@pytest.mark.parametrize(("dtype", "bar"), [(F64, 1e-12), (F32, 3e-6), (BF16, 4e-2)])
def test_log_probs_and_entropy_match_float64(target, dtype, bar, chunk_size):
    hidden, weight, labels, vectors = make(dtype=dtype)
    upstream = vectors["advantages"], vectors["ref_log_probs"]
    exact = exact_stats(hidden, weight, labels, upstream)
    leaves = [target.put(tensor).requires_grad_() for tensor in (hidden, weight)]
    result = linear_logprob_entropy(
        *leaves,
        target.put(labels),
        temperature=0.7,
        entropy_requires_grad=True,
        return_collision=True,
        chunk_size=chunk_size,
        backend=target.backend,
    )
    grads = torch.autograd.grad((result.log_probs, result.entropy), leaves, [target.put(grad) for grad in upstream])
    for value, want in zip(result, exact[:3], strict=True):
        assert (value.cpu()[labels == -100] == 0).all()
        assert (value.cpu()[labels != -100] - want).abs().max() <= bar * (1 + want.abs().max())
    for grad, want in zip(grads, exact[3:], strict=True):
        assert grad.dtype == dtype and relative_error(grad.cpu(), want) <= bar


def test_entropy_has_no_gradient_unless_asked_and_collision_never(target):
    hidden, weight, labels, _ = make()
    arguments = target.put(hidden).requires_grad_(), target.put(weight), target.put(labels)
    result = linear_logprob_entropy(*arguments, return_collision=True, backend=target.backend)
    assert result.log_probs.requires_grad
    assert not result.entropy.requires_grad and not result.collision.requires_grad
    assert linear_logprob_entropy(*arguments, backend=target.backend).collision is None


BAD_ARGUMENTS = {
    "hidden dtype": (TypeError, "hidden is torch.int64", {"hidden": torch.zeros(3, 4, dtype=torch.int64)}),
    "mixed dtypes": (
        TypeError,
        "hidden is torch.bfloat16, weight torch.float32",
        {"hidden": torch.zeros(3, 4).bfloat16()},
    ),
    "width": (ValueError, r"\[3, 5\], weight \[7, 4\]", {"hidden": torch.zeros(3, 5)}),
    "weight shape": (ValueError, r"weight \[7\]", {"weight": torch.zeros(7)}),
    "labels": (ValueError, r"\[4\].*\[3\]", {"labels": torch.zeros(4, dtype=torch.int64)}),
    "chunk size": (ValueError, "chunk_size is 0", {"chunk_size": 0}),
    "temperature": (ValueError, "temperature is -1", {"temperature": -1.0}),
    "sequence parallel alone": (ValueError, "needs the tp_group", {"sequence_parallel": True}),
    "label out of range": (ValueError, r"outside the vocabulary \[0, 7\)", {"labels": torch.tensor([0, 7, 1])}),
    "backend": (ValueError, "backend is 'cuda'", {"backend": "cuda"}),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name):
    error, message, change = BAD_ARGUMENTS[name]
    arguments = {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(7, 4),
        "labels": torch.zeros(3, dtype=torch.int64),
    } | change
    vectors = {name: torch.ones(arguments["labels"].shape) for name in ("old_log_probs", "advantages", "loss_weights")}
    with pytest.raises(error, match=message):
        linear_logprob_entropy(**arguments)
    with pytest.raises(error, match=message):
        linear_ppo_loss(**arguments, **vectors)


def test_float16_is_refused_where_its_gradient_would_underflow():
    hidden, weight, labels, vectors = make(dtype=torch.float16)
    with pytest.raises(TypeError, match="before the loss scale is known"):
        linear_ppo_loss(hidden, weight, labels, **vectors)
    assert torch.isfinite(linear_logprob_entropy(hidden, weight, labels).log_probs).all()
