"""vocab_parallel_logprob_entropy on one shard, against float64 autograd of the reference."""

import math

import pytest
import torch

from rest_kernels import reference, vocab_parallel_logprob_entropy

INF = math.inf


def make(num_tokens, vocab, dtype=torch.float32, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(num_tokens, vocab, dtype=torch.float64, generator=generator) * scale).to(dtype)
    return logits, torch.randint(0, vocab, (num_tokens,), generator=generator)


def upstream(num_tokens, seed=7):
    """Random gradients of log-prob and entropy: a gradient of ones hides scaling mistakes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, num_tokens, dtype=torch.float64, generator=generator).unbind(0)


def oracle(logits, labels, temperature=1.0, grads=None):
    """log_probs, entropy, collision and, with (g, h), the gradient of g . log_probs + h . entropy, in float64."""
    exact = logits.detach().double().requires_grad_()
    log_probs = reference.log_probs(exact, labels, temperature)
    entropy = reference.entropy(exact, temperature)
    grad = None
    if grads is not None:
        (grad,) = torch.autograd.grad((log_probs, entropy), exact, [g.view_as(log_probs) for g in grads])
    return log_probs.detach(), entropy.detach(), reference.collision(exact, temperature).detach(), grad


def gradient(logits, labels, grads, **options):
    leaf = logits.detach().requires_grad_()
    result = vocab_parallel_logprob_entropy(leaf, labels, entropy_requires_grad=True, **options)
    g, h = (grad.to(result.log_probs.dtype).view_as(result.log_probs) for grad in grads)
    return torch.autograd.grad((result.log_probs, result.entropy), leaf, (g, h))[0]


def assert_values(result, log_probs, entropy, collision):
    assert ((result.log_probs - log_probs).abs() <= 2e-6 * (1 + log_probs.abs())).all()
    assert ((result.entropy - entropy).abs() <= 5e-6).all()
    assert ((result.collision - collision).abs() <= 2e-6).all()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_match_float64(dtype, temperature):
    logits, labels = make(64, 1187, dtype)
    result = vocab_parallel_logprob_entropy(logits, labels, temperature=temperature, return_collision=True)
    assert result.log_probs.dtype == result.entropy.dtype == torch.float32
    assert_values(result, *oracle(logits, labels, temperature)[:3])
    assert (result.entropy >= 0).all() and (result.log_probs <= 0).all()


@pytest.mark.parametrize("shift", [1e4, -1e4, 150.0, -150.0])
def test_values_do_not_depend_on_a_shift_of_the_logits(shift):
    logits, labels = make(32, 1187)
    logits += shift
    result = vocab_parallel_logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert_values(result, *oracle(logits, labels, 0.7)[:3])


def test_values_over_a_range_of_plus_and_minus_1e4():
    logits, labels = make(32, 1187)
    logits *= 1e4 / logits.abs().max()
    result = vocab_parallel_logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert_values(result, *oracle(logits, labels, 0.7)[:3])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_float32_gradient_matches_float64(temperature, shift):
    logits, labels = make(48, 1187)
    logits, grads = logits + shift, upstream(48)
    exact = oracle(logits, labels, temperature, grads)[3]
    error = (gradient(logits, labels, grads, temperature=temperature) - exact).abs().max() / exact.abs().max()
    assert error <= 1e-6


@pytest.mark.parametrize(("dtype", "unit", "tiny"), [(torch.bfloat16, 2**-8, 1e-37), (torch.float16, 2**-11, 2**-24)])
def test_half_precision_gradient_is_rounded_once(dtype, unit, tiny):
    logits, labels = make(48, 1187, dtype)
    grads = upstream(48)
    exact = oracle(logits, labels, 0.7, grads)[3]
    grad = gradient(logits, labels, grads, temperature=0.7)
    assert grad.dtype == dtype
    # One rounding to the nearest, plus the float32 error of the terms that cancel in a column.
    assert ((grad - exact).abs() <= unit * exact.abs() + 1e-7 * exact.abs().amax(-1, keepdim=True) + tiny).all()


@pytest.mark.parametrize("vocab", [1, 2, 5, 37])
def test_gradcheck_in_float64(vocab):
    logits, labels = make(6, vocab, torch.float64, scale=1.5)

    def outputs(logits):
        return vocab_parallel_logprob_entropy(logits, labels, temperature=0.7, entropy_requires_grad=True)[:2]

    assert torch.autograd.gradcheck(outputs, logits.requires_grad_())


@pytest.mark.parametrize("vocab", [1, 5, 1187, 40000])
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_any_shard_width(vocab, num_tokens):
    logits, labels = make(num_tokens, vocab)
    grads = upstream(num_tokens)
    *values, exact = oracle(logits, labels, 1.0, grads)
    assert_values(vocab_parallel_logprob_entropy(logits, labels, return_collision=True), *values)
    assert (gradient(logits, labels, grads) - exact).abs().max() <= 1e-6 * exact.abs().max() + 1e-12


@pytest.mark.parametrize("masked", [slice(0, 1024), slice(400, 600), slice(1000, 1187), slice(1, 1187)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_columns_hold_no_probability_and_get_no_gradient(masked, dtype):
    logits, _ = make(8, 1187, dtype)
    logits[:, masked] = -INF
    open_columns = torch.isfinite(logits[0]).nonzero().squeeze(-1)
    labels = open_columns[torch.arange(8) % len(open_columns)]
    grads = upstream(8)
    *values, exact = oracle(logits, labels, 0.7, grads)
    assert_values(vocab_parallel_logprob_entropy(logits, labels, temperature=0.7, return_collision=True), *values)
    grad = gradient(logits, labels, grads, temperature=0.7)
    assert (grad[:, masked] == 0).all()
    assert ((grad - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


def test_a_masked_label_has_log_prob_minus_infinity_and_a_finite_gradient():
    logits = torch.tensor([[0.0, -INF, 1.0]])
    result = vocab_parallel_logprob_entropy(logits, torch.tensor([1]))
    assert result.log_probs.item() == -INF
    assert result.entropy.item() == pytest.approx(reference.entropy(logits.double()).item())
    one = torch.ones(1, dtype=torch.float64)
    assert torch.isfinite(gradient(logits, torch.tensor([1]), (one, one))).all()


@pytest.mark.parametrize("padding", [7.0, 1e4, math.nan, -INF])
@pytest.mark.parametrize("vocab_size", [1000, 1186, 1187])
def test_padded_columns_are_not_trusted(padding, vocab_size):
    logits, labels = make(16, 1187)
    labels %= vocab_size
    logits[:, vocab_size:] = padding
    grads = upstream(16)
    *values, exact = oracle(logits[:, :vocab_size], labels, 0.7, grads)
    options = {"temperature": 0.7, "vocab_size": vocab_size}
    assert_values(vocab_parallel_logprob_entropy(logits, labels, return_collision=True, **options), *values)
    grad = gradient(logits, labels, grads, **options)
    assert (grad[:, vocab_size:] == 0).all()
    assert (grad[:, :vocab_size] - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("tail", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-9, 1e-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_target_gradient_survives_when_its_probability_nears_one(tail, dtype):
    logits = torch.zeros(1, 1001, dtype=dtype)
    logits[0, 3] = math.log(1000 * (1 - tail) / tail)
    grads = torch.tensor([[1.7], [0.0]], dtype=torch.float64)
    grad = gradient(logits, torch.tensor([3]), grads)[0, 3].item()
    # 1 - p_y by hand; at 1e-20 even the float64 softmax has lost it.
    top = logits[0, 3].item()
    exact = 1.7 * 1000 / (math.exp(top) + 1000)
    assert grad == pytest.approx(exact, rel=2**-8 if dtype == torch.bfloat16 else 5e-6)


def test_ignored_rows_are_not_read():
    logits, labels = make(12, 37)
    ignored = torch.tensor([0, 3, 4, 11])
    kept = torch.tensor([1, 2, 5, 6, 7, 8, 9, 10])
    logits[ignored] = math.nan
    labels[ignored] = -100
    grads = upstream(12)
    *values, exact = oracle(logits[kept], labels[kept], 1.0, [grad[kept] for grad in grads])
    result = vocab_parallel_logprob_entropy(logits, labels, return_collision=True)
    for tensor in result:
        assert (tensor[ignored] == 0).all()
    assert_values(type(result)(*(tensor[kept] for tensor in result)), *values)
    grad = gradient(logits, labels, grads)
    assert (grad[ignored] == 0).all()
    assert (grad[kept] - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_rows_without_upstream_gradient_get_exactly_zero():
    logits, labels = make(6, 37)
    still, moved = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    logits[1] = math.nan
    grads = torch.stack(upstream(6))
    grads[:, still] = 0
    grad = gradient(logits, labels, grads.unbind(0))
    assert (grad[still] == 0).all()
    exact = oracle(logits[moved], labels[moved], 1.0, grads[:, moved].unbind(0))[3]
    assert (grad[moved] - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_entropy_alone_can_be_differentiated():
    logits, labels = make(5, 37)
    leaf = logits.requires_grad_()
    entropy = vocab_parallel_logprob_entropy(leaf, labels, entropy_requires_grad=True).entropy
    h = upstream(5)[1]
    (grad,) = torch.autograd.grad(entropy, leaf, h.float())
    exact = oracle(logits, labels, 1.0, (torch.zeros(5, dtype=torch.float64), h))[3]
    assert (grad - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_entropy_has_no_gradient_unless_asked_and_collision_never():
    logits, labels = make(5, 37)
    result = vocab_parallel_logprob_entropy(logits.requires_grad_(), labels, return_collision=True)
    assert result.log_probs.requires_grad
    assert not result.entropy.requires_grad and not result.collision.requires_grad
    assert vocab_parallel_logprob_entropy(logits, labels).collision is None


def layouts():
    base = make(4 * 3, 50, seed=3)[0]
    whole = base.view(4, 3, 50)
    wide = torch.randn(4, 6, 71, generator=torch.Generator().manual_seed(4))
    return {
        "3-D": whole,
        "transposed leading": whole.transpose(0, 1),
        "next-token slice": whole[:, :-1],
        "wide rows": wide[..., :50],
        "every second row": wide[:, ::2, 5:55],
        "offset storage": base[2:],
        "one row": base[0],
    }


@pytest.mark.parametrize("name", layouts())
def test_any_leading_shape_and_strides(name):
    logits = layouts()[name]
    labels = torch.randint(0, 50, logits.shape[:-1], generator=torch.Generator().manual_seed(5))
    grads = upstream(labels.numel())
    *values, exact = oracle(logits, labels, 0.7, grads)
    result = vocab_parallel_logprob_entropy(logits, labels, temperature=0.7, return_collision=True)
    assert result.log_probs.shape == labels.shape
    assert_values(result, *values)
    grad = gradient(logits, labels, grads, temperature=0.7)
    assert grad.shape == logits.shape
    assert (grad - exact).abs().max() <= 1e-6 * exact.abs().max()


@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0)])
def test_no_tokens_give_empty_results_and_an_empty_gradient(shape):
    logits = torch.zeros(*shape, 37, dtype=torch.bfloat16, requires_grad=True)
    result = vocab_parallel_logprob_entropy(logits, torch.zeros(shape, dtype=torch.int64), return_collision=True)
    assert all(tensor.shape == shape for tensor in result)
    result.log_probs.sum().backward()
    assert logits.grad.shape == logits.shape


def test_inputs_stay_as_they_were():
    logits, labels = make(9, 1187, torch.bfloat16)
    logits[:, 5] = -INF
    before, labels_before = logits.clone(), labels.clone()
    gradient(logits, labels, upstream(9), temperature=0.7)
    assert torch.equal(logits, before) and torch.equal(labels, labels_before)


def test_a_second_backward_gives_the_same_bits():
    logits, labels = make(9, 1187, torch.bfloat16)
    leaf = logits.requires_grad_()
    result = vocab_parallel_logprob_entropy(leaf, labels, entropy_requires_grad=True)
    g, h = (grad.float() for grad in upstream(9))
    outputs = (result.log_probs, result.entropy)
    first = torch.autograd.grad(outputs, leaf, (g, h), retain_graph=True)[0]
    second = torch.autograd.grad(outputs, leaf, (g, h))[0]
    assert torch.equal(first, second)


def test_changing_the_logits_before_backward_is_an_error():
    logits, labels = make(3, 7)
    hidden = logits.requires_grad_() * 1.0
    result = vocab_parallel_logprob_entropy(hidden, labels)
    hidden += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.log_probs.sum().backward()


BAD_ARGUMENTS = {
    "integer logits": (TypeError, "logits are torch.int64", {"logits": torch.zeros(3, 7, dtype=torch.int64)}),
    "int32 labels": (TypeError, "labels are torch.int32", {"labels": torch.zeros(3, dtype=torch.int32)}),
    "scalar logits": (ValueError, "scalar", {"logits": torch.tensor(1.0)}),
    "label shape": (ValueError, r"\[4\].*\[3, 7\]", {"labels": torch.zeros(4, dtype=torch.int64)}),
    "stride": (ValueError, "stride 3", {"logits": torch.zeros(7, 3).t()}),
    "zero temperature": (ValueError, "temperature is 0", {"temperature": 0.0}),
    "infinite temperature": (ValueError, "temperature is inf", {"temperature": INF}),
    "vocab_size too large": (ValueError, "vocab_size is 8.*= 7 columns", {"vocab_size": 8}),
    "vocab_size zero": (ValueError, "vocab_size is 0", {"vocab_size": 0}),
    "label beyond the vocabulary": (ValueError, r"1 of 3 labels.*\[0, 7\).*is 7", {"labels": torch.tensor([0, 7, 1])}),
    "label in the padding": (ValueError, r"\[0, 5\)", {"labels": torch.tensor([0, 5, 1]), "vocab_size": 5}),
    "negative label": (ValueError, "is -1", {"labels": torch.tensor([0, 1, -1])}),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name):
    error, message, change = BAD_ARGUMENTS[name]
    arguments = {"logits": torch.zeros(3, 7), "labels": torch.zeros(3, dtype=torch.int64)} | change
    with pytest.raises(error, match=message):
        vocab_parallel_logprob_entropy(**arguments)
