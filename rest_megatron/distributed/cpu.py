"""What Megatron-core 0.16 asks of CUDA even when it runs on the CPU, answered for the CPU.

Megatron's schedules, its random-state tracker and its tied-embedding start-up call CUDA directly. Each
replacement below is one of those calls; none is made on a machine where the actor runs on CUDA.
"""

import torch
from megatron.core.pipeline_parallel import schedules
from megatron.core.tensor_parallel import random as megatron_random


class _TorchOnCpu:
    """`torch` as `schedules` sees it: `zeros(..., device="cuda")` makes a CPU tensor."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def zeros(*size, **kwargs):
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return torch.zeros(*size, **kwargs)


def _get_rng_state(device="cpu", clone=False, graph_safe=False):
    return torch.get_rng_state()


def _set_rng_state(new_state, device=-1, graph_safe=False):
    torch.set_rng_state(new_state)


def use_cpu() -> None:
    """Let Megatron-core run on the CPU. Idempotent; call before the process groups are made."""
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.get_rng_state = _get_rng_state
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    megatron_random._get_cuda_rng_state = _get_rng_state
    megatron_random._set_cuda_rng_state = _set_rng_state
    schedules.torch = _TorchOnCpu()
