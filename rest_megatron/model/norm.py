"""RMSNorm with Hugging Face's exact roundings, forward and backward.

`torch.nn.functional.rms_norm` multiplies by the weight before rounding to bf16; Hugging Face rounds first.
The difference is 3.7e-3 in bf16, enough to see between trainer and rollout engine. The order of operations
here is Hugging Face's, so bf16 results are bitwise equal to `Qwen3RMSNorm`, `Qwen2RMSNorm` and `LlamaRMSNorm`.
"""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn


class _RMSNormFunction(torch.autograd.Function):
    """y = weight * round(x * rstd), rstd = rsqrt(mean(x^2) + eps). Saves x and rstd, not the float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = _normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        wide = x.float()
        normed = (wide * rstd).to(x.dtype)
        grad_weight = (grad * normed).sum(dim=tuple(range(grad.dim() - 1)))
        grad_normed = (grad * weight).float()
        grad_rstd = (grad_normed * wide).sum(-1, keepdim=True)
        grad_mean = -0.5 * grad_rstd * rstd.pow(3)
        grad_wide = grad_normed * rstd + (grad_mean / x.shape[-1]) * (2 * wide)
        return grad_wide.to(x.dtype), grad_weight, None


class RMSNorm(nn.Module):
    """Megatron's norm interface over the function above; replicated over tensor-parallel ranks.

    `weight.sequence_parallel` tells `gradients.py` that each rank saw only its part of the sequence.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of x [..., hidden_size]; same dtype out."""
        if not torch.is_grad_enabled():
            return _normalise(x, self.weight, self.eps)[0]
        return _RMSNormFunction.apply(x, self.weight, self.eps)


def _normalise(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The output and rstd."""
    wide = x.float()
    rstd = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
    return weight * (wide * rstd).to(x.dtype), rstd
