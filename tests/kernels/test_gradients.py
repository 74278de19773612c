"""The gradient of log-prob and entropy against float64 autograd, with random upstream gradients."""

import math

import pytest
import torch

from tests.kernels.oracle import (
    BF16,
    F16,
    F32,
    F64,
    assert_gradient,
    exact_gradient,
    gradient,
    make_logits,
    upstream,
)

INF = math.inf


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("shift", [0.0, 150.0, 1e4, -1e4])
def test_float32_gradient_matches_float64(target, temperature, shift):
    logits, labels = make_logits(12, 1187)
    logits, grads = logits + shift, upstream(12)
    grad = gradient(target, logits, labels, grads, temperature=temperature)
    assert grad.dtype == F32
    assert_gradient(grad, exact_gradient(logits, labels, grads, temperature))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_half_precision_gradient_is_rounded_once(target, dtype, temperature):
    logits, labels = make_logits(12, 1187, dtype)
    grads = upstream(12)
    grad = gradient(target, logits, labels, grads, temperature=temperature)
    assert grad.dtype == dtype
    assert_gradient(grad, exact_gradient(logits, labels, grads, temperature), target.unit(dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradient_over_a_range_of_plus_and_minus_1e4(target, dtype):
    logits, labels = make_logits(12, 1187)
    logits = (logits * (1e4 / logits.abs().max())).to(dtype)
    grads = upstream(12)
    grad = gradient(target, logits, labels, grads, temperature=0.7)
    assert_gradient(grad, exact_gradient(logits, labels, grads, 0.7), target.unit(dtype))


@pytest.mark.parametrize("vocab", [1, 2, 5, 37])
@pytest.mark.parametrize("dtype", [F64])
def test_gradcheck_in_float64(target, vocab, dtype):
    logits, labels = make_logits(6, vocab, dtype, scale=1.5)

    def outputs(logits):
        return target.logprob_entropy(logits, labels, temperature=0.7, entropy_requires_grad=True)[:2]

    assert torch.autograd.gradcheck(outputs, logits.requires_grad_())


@pytest.mark.parametrize("vocab", [2, 5, 1024, 1187, 4097, 18992, 19072, 75968])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_any_shard_width(target, vocab, dtype):
    logits, labels = make_logits(3, vocab, dtype)
    labels[-1] = vocab - 1
    grads = upstream(3)
    grad = gradient(target, logits, labels, grads)
    assert_gradient(grad, exact_gradient(logits, labels, grads), target.unit(dtype))


def test_one_column_alone_has_probability_one_and_no_gradient(target):
    logits, labels = make_logits(4, 1)
    assert (gradient(target, logits, labels, upstream(4)) == 0).all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_whole_vocabulary_of_151936_columns(target, dtype):
    logits, labels = make_logits(2, 151936, dtype)
    labels[0] = 151935
    grads = upstream(2)
    assert_gradient(gradient(target, logits, labels, grads), exact_gradient(logits, labels, grads), target.unit(BF16))


@pytest.mark.parametrize("label", [0, 4095, 4096, 8191, 8192, 8999])
def test_a_label_in_any_block_of_columns(target, label):
    logits, _ = make_logits(1, 9000)
    labels, grads = torch.tensor([label]), upstream(1)
    assert_gradient(gradient(target, logits, labels, grads), exact_gradient(logits, labels, grads))


@pytest.mark.parametrize("masked", [slice(0, 1024), slice(0, 4096), slice(400, 600), slice(4000, 5000), slice(1, 5000)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_masked_columns_get_no_gradient(target, masked, dtype):
    logits, _ = make_logits(4, 5000, dtype)
    logits[:, masked] = -INF
    open_columns = torch.isfinite(logits[0]).nonzero().squeeze(-1)
    labels, grads = open_columns[torch.arange(4) % len(open_columns)], upstream(4)
    grad = gradient(target, logits, labels, grads, temperature=0.7)
    assert (grad[:, masked] == 0).all()
    assert_gradient(grad, exact_gradient(logits, labels, grads, 0.7), target.unit(dtype))


@pytest.mark.parametrize("padding", [7.0, 1e4, math.nan, -INF, INF])
@pytest.mark.parametrize("vocab_size", [1000, 1024, 1186])
def test_padded_columns_get_no_gradient(target, padding, vocab_size):
    logits, labels = make_logits(6, 1187)
    labels %= vocab_size
    logits[:, vocab_size:] = padding
    grads = upstream(6)
    grad = gradient(target, logits, labels, grads, temperature=0.7, vocab_size=vocab_size)
    assert (grad[:, vocab_size:] == 0).all()
    assert_gradient(grad[:, :vocab_size], exact_gradient(logits[:, :vocab_size], labels, grads, 0.7))


@pytest.mark.parametrize("tail", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-9, 1e-20])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_target_gradient_survives_when_its_probability_nears_one(target, tail, dtype):
    logits = torch.zeros(1, 1001, dtype=dtype)
    logits[0, 3] = math.log(1000 * (1 - tail) / tail)
    grads = torch.tensor([[1.7], [0.0]], dtype=F64).unbind()
    grad = gradient(target, logits, torch.tensor([3]), grads)[0, 3].item()
    # 1 - p_y by hand; at 1e-20 even the float64 softmax has lost it.
    top = logits[0, 3].item()
    exact = 1.7 * 1000 / (math.exp(top) + 1000)
    assert grad == pytest.approx(exact, rel=5e-6 if dtype == F32 else target.unit(dtype))


@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-9])
def test_entropy_gradient_survives_when_one_probability_nears_one(target, tail):
    logits = torch.zeros(1, 1001)
    logits[0, 3] = math.log(1000 * (1 - tail) / tail)
    grads = torch.tensor([[0.0], [1.7]], dtype=F64).unbind()
    labels = torch.tensor([3])
    exact = exact_gradient(logits, labels, grads)
    grad = gradient(target, logits, labels, grads)
    assert ((grad - exact).abs() <= 1e-5 * exact.abs() + 1e-6 * exact.abs().max()).all()


def test_entropy_alone_can_be_differentiated(target):
    logits, labels = make_logits(5, 37)
    leaf, h = logits.requires_grad_(), upstream(5)[1]
    entropy = target.logprob_entropy(leaf, labels, entropy_requires_grad=True).entropy
    (grad,) = torch.autograd.grad(entropy, leaf, h.float())
    assert_gradient(grad, exact_gradient(logits, labels, (torch.zeros(5, dtype=F64), h)))


def test_entropy_has_no_gradient_unless_asked_and_collision_never(target):
    logits, labels = make_logits(5, 37)
    result = target.logprob_entropy(logits.requires_grad_(), labels, return_collision=True)
    assert result.log_probs.requires_grad
    assert not result.entropy.requires_grad and not result.collision.requires_grad


def test_a_differentiable_entropy_leaves_the_gradient_of_log_prob_as_it_was(target):
    logits, labels = make_logits(8, 300)
    grads = []
    for entropy_requires_grad in (False, True):
        leaf = logits.clone().requires_grad_()
        result = target.logprob_entropy(leaf, labels, entropy_requires_grad=entropy_requires_grad)
        grads += torch.autograd.grad(result.log_probs, leaf, upstream(8)[0].float())
    assert torch.equal(*grads)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_equal_inputs_give_equal_bits(target, dtype):
    logits, labels = make_logits(8, 5000, dtype)
    first, second = (gradient(target, logits, labels, upstream(8), temperature=0.7) for _ in range(2))
    assert torch.equal(first, second)
