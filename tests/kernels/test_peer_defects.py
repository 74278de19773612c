"""Defects that other kernels for this job had or have, each with a test of ours that would catch it.

Those that only a GPU shows are in test_cuda, that of bfloat16 sums of the LM head's gradient is in test_linear.
"""

import math

import pytest
import torch

from rest_kernels import reference
from tests.kernels.meter import PeakMemory
from tests.kernels.oracle import (
    BF16,
    ENTROPY,
    F32,
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

INF = math.inf
ALL = {"clip_ratio_dual": 3.0, "kl_coef": 0.1, "entropy_coef": 0.05, "temperature": 0.7}


# verl's fused linear cross entropy starts its running maximum at 0 (so does Megatron-LM's on its dev branch): with all
# logits at -100 log-probs are off by 7e-4, at -150 they are infinite.
@pytest.mark.parametrize("shift", [-100.0, -150.0, -1e4])
def test_rows_whose_logits_are_all_negative(target, shift):
    logits, labels = make_logits(6, 1187)
    logits += shift
    result = target.logprob_entropy(logits, labels, return_collision=True)
    assert_values(result, exact_values(logits, labels))


# verl #2656: log-probs of +123, and the reward collapsed.
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("scale", [3.0, 300.0])
def test_no_log_prob_is_positive_and_no_entropy_negative(target, dtype, scale):
    logits, labels = make_logits(16, 2000, dtype, scale)
    labels[::2] = logits[::2].float().argmax(-1)
    result = target.logprob_entropy(logits, labels)
    assert (result.log_probs <= 0).all() and (result.entropy >= 0).all()


# verl #2899: wrong where the vocabulary is no multiple of the block.
@pytest.mark.parametrize("vocab", [255, 257, 1000, 1023, 1025, 2000, 4095, 4097])
def test_a_vocabulary_that_is_no_multiple_of_a_block(target, vocab):
    logits, _ = make_logits(2, vocab)
    labels = torch.tensor([vocab - 1, 0])
    grads = upstream(2)
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))
    assert_gradient(gradient(target, logits, labels, grads), exact_gradient(logits, labels, grads))


# verl's fused kernel knows no ignore_index: prompt tokens need made-up labels.
def test_ignored_tokens_need_no_label(target):
    logits, labels = make_logits(4, 300)
    labels[1] = -100
    result = target.logprob_entropy(logits, labels)
    assert result.log_probs[1] == 0 and (gradient(target, logits, labels, upstream(4))[1] == 0).all()


# verl's fused kernel leaves uninitialised memory where a label is out of range.
@pytest.mark.parametrize("label", [300, -7])
def test_a_wrong_label_is_refused_or_not_a_number(target, label):
    logits, labels = make_logits(4, 300)
    labels[2] = label
    if target.device == "cpu":
        with pytest.raises(ValueError, match=f"outside the vocabulary.*first is {label}"):
            target.logprob_entropy(logits, labels)
    else:
        assert target.logprob_entropy(logits, labels).log_probs.isnan().tolist() == [False, False, True, False]


# verl #2484: the backward pass of the vocabulary-parallel entropy edits the logits and restores them up to 0.06 (bf16).
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_backward_leaves_the_logits_bitwise_as_they_were(target, dtype):
    logits, labels = make_logits(6, 1187, dtype)
    leaf = target.put(logits).requires_grad_()
    result = target.logprob_entropy(leaf, labels, temperature=0.7, entropy_requires_grad=True)
    (result.log_probs.sum() + result.entropy.sum()).backward()
    assert torch.equal(leaf.detach().cpu(), logits)


# verl and NeMo-RL divide the caller's logits by the temperature in place. (verl changes its tensor of temperatures as
# well; ours is a number.)
def test_forward_leaves_the_logits_undivided(target):
    logits, labels = make_logits(6, 300)
    kept = target.put(logits.clone())
    target.logprob_entropy(kept, labels, temperature=0.5)
    assert torch.equal(kept.cpu(), logits)


# verl's entropy of bf16 logits is bf16 and off by 0.05.
def test_the_entropy_of_bf16_logits_is_float32(target):
    logits, labels = make_logits(8, 5000, BF16)
    result = target.logprob_entropy(logits, labels)
    assert result.entropy.dtype == F32
    assert ((result.entropy - exact_values(logits, labels)[1]).abs() <= ENTROPY).all()


# verl's vocab_parallel_entropy_with_chunking fails on [T, V], the shape it is documented for.
@pytest.mark.parametrize("shape", [(12,), (4, 3), (2, 2, 3), ()])
def test_any_number_of_leading_dimensions(target, shape):
    logits, labels = make_logits(math.prod(shape), 300)
    result = target.logprob_entropy(logits.view(*shape, 300), labels.view(shape))
    assert result.log_probs.shape == result.entropy.shape == shape
    flat = type(result)(result.log_probs.reshape(-1), result.entropy.reshape(-1), None)
    assert_values(flat, exact_values(logits, labels))


# -inf columns: entropy NaN in verl and NeMo-RL, entropy and gradient NaN in TRL, log-prob NaN in TRL where the first
# 1024 are masked, log-sum NaN in flash-attn for a fully masked shard (see also test_stats and test_tensor_parallel).
@pytest.mark.parametrize("masked", [slice(7, 8), slice(0, 1024), slice(0, 4096), slice(4096, 5000)])
def test_masked_columns(target, masked):
    logits, labels = make_logits(2, 5000)
    logits[:, masked] = -INF
    labels[:], grads = 2048 if masked.start else 4500, upstream(2)
    assert_values(target.logprob_entropy(logits, labels, return_collision=True), exact_values(logits, labels))
    assert_gradient(gradient(target, logits, labels, grads), exact_gradient(logits, labels, grads))


# Entropy as log-sum - sum(p x) cancels (verl, TRL, slime, AReaL, Liger): off by 1e-3 at +1e4, 2e-4 at +1000.
@pytest.mark.parametrize("shift", [1000.0, 1e4])
def test_entropy_of_large_logits_does_not_cancel(target, shift):
    logits, labels = make_logits(6, 1187)
    logits += shift
    found, exact = target.logprob_entropy(logits, labels).entropy, exact_values(logits, labels)[1]
    assert ((found - exact).abs() <= ENTROPY).all()


# Megatron-LM's fused cross entropy rounds the gradient of float32 logits to bf16.
def test_the_gradient_of_float32_logits_is_float32(target):
    logits, labels = make_logits(6, 1187)
    grads = upstream(6)
    grad = gradient(target, logits, labels, grads)
    assert grad.dtype == F32
    assert (grad != grad.bfloat16()).float().mean() > 0.9
    assert_gradient(grad, exact_gradient(logits, labels, grads))


# Liger #1329, TransformerEngine #3193: p_y - 1 in a bf16 buffer loses the label's gradient once p_y nears 1.
@pytest.mark.parametrize("tail", [1e-2, 1e-3, 1e-5])
def test_a_confident_label_keeps_its_gradient_in_bf16(target, tail):
    logits = torch.zeros(1, 1001, dtype=BF16)
    logits[0, 3] = math.log(1000 * (1 - tail) / tail)
    vectors = {"old_log_probs": torch.zeros(1), "advantages": torch.ones(1), "loss_weights": torch.ones(1)}
    labels = torch.tensor([3])
    grad = ppo_gradient(target, logits, labels, vectors, 1.7)[1]
    exact = exact_ppo(logits, labels, vectors, 1.7)[1]
    assert grad[0, 3].item() == pytest.approx(exact[0, 3].item(), rel=1.01 * target.unit(BF16))


# TransformerEngine #2139, Megatron-LM #1627 and #1750: what is upstream was dropped; tests had only ones.
@pytest.mark.parametrize("scale", [1.7, -0.2])
def test_what_is_upstream_is_multiplied_in(target, scale):
    logits, labels, vectors = make_ppo(6, 300, BF16)
    expected = exact_ppo(logits, labels, vectors, scale, **ALL)[1]
    assert_ppo_gradient(ppo_gradient(target, logits, labels, vectors, scale, **ALL)[1], expected, target.unit(BF16))
    grads = upstream(6)
    exact = exact_gradient(logits, labels, grads)
    assert_gradient(gradient(target, logits, labels, grads), exact, target.unit(BF16))


# slime #1523, #1951, #2253, verl #1007, #1100, #6446, TRL #4013, SkyRL #1610: float32 copies of all logits.
@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
def test_no_float32_copy_of_the_logits(target, entropy_coef):
    num_tokens = 8 if target.interpreted else 512 if target.device == "cpu" else 8192
    logits, labels, vectors = make_ppo(4, 8192 if target.interpreted else 32768, BF16)
    logits, labels = logits.repeat(num_tokens // 4, 1), labels.repeat(num_tokens // 4)
    vectors = {name: vector.repeat(num_tokens // 4) for name, vector in vectors.items()}
    leaf = target.put(logits).requires_grad_()
    labels, vectors = target.put(labels), {name: target.put(vector) for name, vector in vectors.items()}
    with PeakMemory() as memory:
        loss = target.ppo_loss(leaf, labels, **vectors, entropy_coef=entropy_coef).loss
        (grad,) = torch.autograd.grad(loss, leaf)
    assert memory.peak - grad.nbytes <= 0.4 * 4 * logits.numel()


# In-place gradients through .data hide from autograd that the logits are gone: later reads are silently wrong.
def test_overwriting_the_logits_is_known_to_autograd(target):
    values, labels = make_logits(4, 300)
    logits = target.put(values).requires_grad_() * 1
    kept = logits.square().sum()
    version = logits._version
    log_probs = target.logprob_entropy(logits, labels, inplace_backward=True).log_probs
    torch.autograd.grad(log_probs.sum(), logits, retain_graph=True)
    assert logits._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(kept, logits)


# Megatron-LM's GRPO loss calls -p_y log p_y of the drawn token the entropy.
def test_entropy_is_that_of_the_distribution(target):
    logits, labels = torch.zeros(1, 64), torch.tensor([9])
    assert target.logprob_entropy(logits, labels).entropy.item() == pytest.approx(math.log(64))
    assert reference.entropy(logits).item() == pytest.approx(math.log(64))
