"""RMSNorm bitwise against Hugging Face's."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from rest_megatron.model.norm import RMSNorm

SHAPES = [(7, 64), (5, 3, 64), (5, 3, 4, 32), (1, 1, 96)]
SCALES = [1e-4, 1.0, 300.0]


def make_norm(size, dtype, eps=1e-6, sequence_parallel=False):
    config = SimpleNamespace(use_cpu_initialization=True, params_dtype=dtype, sequence_parallel=sequence_parallel)
    return RMSNorm(config, size, eps=eps)


def run(norm, x, upstream):
    """Output, gradient of the input and of the weight."""
    x = x.clone().requires_grad_()
    out = norm(x)
    out.backward(upstream)
    return out.detach(), x.grad, norm.weight.grad


@pytest.mark.parametrize("theirs", [Qwen3RMSNorm, Qwen2RMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_forward_and_backward_are_bitwise_hugging_faces(theirs, dtype, shape, scale):
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(shape, generator=generator)).to(dtype)
    upstream = torch.randn(shape, generator=generator).to(dtype)
    ours, hugging_face = make_norm(shape[-1], dtype, eps=1e-5), theirs(shape[-1], eps=1e-5).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(1 + 0.3 * torch.randn(shape[-1], generator=generator))
        hugging_face.weight.copy_(ours.weight)
    for name, a, b in zip(("out", "dx", "dw"), run(ours, x, upstream), run(hugging_face, x, upstream), strict=True):
        assert a.dtype == b.dtype == dtype
        assert torch.equal(a, b), name


def test_the_gradient_is_the_derivative():
    """The hand-written backward in float32 against autograd through the formula in float64."""
    generator = torch.Generator().manual_seed(1)
    x, upstream = torch.randn(6, 48, generator=generator), torch.randn(6, 48, generator=generator)
    _, dx, dw = run(make_norm(48, torch.float32), x, upstream)
    wide, weight = x.double().requires_grad_(), torch.ones(48, dtype=torch.float64, requires_grad=True)
    (weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).backward(upstream.double())
    assert torch.allclose(dx.double(), wide.grad, rtol=0, atol=2e-6)
    assert torch.allclose(dw.double(), weight.grad, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_weight_says_whether_it_sees_part_of_the_sequence(sequence_parallel):
    assert (
        make_norm(8, torch.float32, sequence_parallel=sequence_parallel).weight.sequence_parallel is sequence_parallel
    )
