"""What Megatron-core 0.16 and DeepSpeed ask of CUDA even when they run on the CPU, answered for the CPU.

Megatron's schedules, its random-state tracker and its tied-embedding start-up call CUDA directly. Each
replacement below is one of those calls; none is made on a machine where the actor runs on CUDA.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.ops import __compatible_ops__
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random


class _TorchOnCpu:
    """`torch` as `schedules` sees it: `zeros(..., device="cuda")` makes a CPU tensor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return torch.zeros(*size, **kwargs)


def _get_rng_state(device: object = "cpu", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, device: object = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


def use_cpu() -> None:
    """Let DeepSpeed and Megatron-core run on the CPU. Idempotent; call before the process groups are made."""
    set_accelerator(CPU_Accelerator())
    # DeepSpeed would compile a shared-memory communication op at start; gloo needs no compiler.
    __compatible_ops__["deepspeed_shm_comm"] = False
    cpu = torch.device("cpu")
    replacements: tuple[tuple[object, str, Callable[..., object]], ...] = (
        (torch.cuda, "current_device", lambda: cpu),
        (torch.cuda, "synchronize", lambda device=None: None),
        (torch.cuda, "get_rng_state", _get_rng_state),
        (torch.Tensor, "cuda", lambda self, *args, **kwargs: self),
        (megatron_random, "_get_cuda_rng_state", _get_rng_state),
        (megatron_random, "_set_cuda_rng_state", _set_rng_state),
    )
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    schedules.torch = _TorchOnCpu()
