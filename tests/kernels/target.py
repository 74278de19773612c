"""A backend on a device: the same tests hold each of them."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from rest_kernels import LogProbEntropy, PPOLoss, vocab_parallel_logprob_entropy, vocab_parallel_ppo_loss
from rest_kernels.backend import Backend, choose_backend

# How far a value may move when it is rounded to the nearest of its dtype, relative to itself.
UNITS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24, torch.float64: 2**-53}


@dataclass(frozen=True)
class Target:
    """Inputs go to `device`, results come back to the CPU, and autograd follows them both ways."""

    device: str
    backend: str

    def __str__(self) -> str:
        return f"{self.device}-{self.backend}"

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels: about 10 ms per row and pass."""
        return self == INTERPRETER

    @property
    def module(self) -> Backend:
        """The backend's passes themselves."""
        return choose_backend(self.backend, torch.float32, torch.device(self.device))

    def unit(self, dtype: torch.dtype) -> float:
        """The relative error of one rounding to `dtype`. The interpreter cuts bfloat16 off instead of rounding."""
        return 2**-7 if self.interpreted and dtype == torch.bfloat16 else UNITS[dtype]

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor on the target's device; strides survive only where it is there already."""
        return tensor.to(self.device)

    def logprob_entropy(self, logits: Tensor, labels: Tensor, **options) -> LogProbEntropy:
        """`vocab_parallel_logprob_entropy` on this target."""
        result = vocab_parallel_logprob_entropy(self.put(logits), self.put(labels), backend=self.backend, **options)
        return LogProbEntropy(*(None if value is None else value.cpu() for value in result))

    def ppo_loss(self, logits: Tensor, labels: Tensor, **options) -> PPOLoss:
        """`vocab_parallel_ppo_loss` on this target."""
        options = {name: self.put(value) if torch.is_tensor(value) else value for name, value in options.items()}
        result = vocab_parallel_ppo_loss(self.put(logits), self.put(labels), backend=self.backend, **options)
        metrics = {name: value.cpu() for name, value in result.metrics.items()}
        return PPOLoss(*(value.cpu() for value in result[:3]), metrics)


INTERPRETER = Target("cpu", "triton")
CUDA_TRITON = Target("cuda", "triton")


def available_targets() -> list[Target]:
    """The interpreter where Triton was started in it, else the CPU, and a GPU where there is one."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return [INTERPRETER]
    cuda = [CUDA_TRITON, Target("cuda", "torch")] if torch.cuda.is_available() else []
    return [Target("cpu", "torch"), *cuda]
