"""What only a GPU shows of the Triton kernels: waits for the device, compiled variants, launches."""

import pytest
import torch

from rest_kernels import vocab_parallel_ppo_loss
from tests.kernels.oracle import BF16, make_ppo

pytestmark = pytest.mark.gpu
SETTINGS = {"temperature": 0.7, "clip_ratio_dual": 3.0, "kl_coef": 0.1, "entropy_coef": 0.05}


class Step:
    """A training step on [T, V] logits, forward and backward on their own."""

    def __init__(self, target, num_tokens: int, vocab: int = 2000):
        logits, labels, vectors = make_ppo(num_tokens, vocab, BF16)
        self.backend = target.backend
        self.logits, self.labels = target.put(logits).requires_grad_(), target.put(labels)
        self.vectors = {name: target.put(vector) for name, vector in vectors.items()}
        self.upstream = target.put(torch.tensor(1.7))

    def forward(self):
        return vocab_parallel_ppo_loss(self.logits, self.labels, **self.vectors, **SETTINGS, backend=self.backend).loss

    def backward(self, loss):
        return torch.autograd.grad(loss, self.logits, self.upstream)[0]


def kernels_in(function, *args):
    """(result, the names of the kernels that ran on the device)."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        result = function(*args)
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return result, [event.name for event in on_device if not event.name.startswith(("Memcpy", "Memset"))]


# verl's `assert torch.all(temperature > 0).item()` and Python numbers read from tensors wait for the device.
def test_nothing_waits_for_the_device(cuda_triton):
    step = Step(cuda_triton, 64)
    step.backward(step.forward())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.backward(step.forward())
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Liger's GRPO kernel has the sequence length among its compile-time constants: every new length compiles again.
def test_no_sequence_length_compiles_again(cuda_triton):
    from rest_kernels.triton_backend.gradient import logits_gradient_kernel
    from rest_kernels.triton_backend.ppo import ppo_rows_kernel
    from rest_kernels.triton_backend.stats import softmax_stats_kernel

    kernels = (softmax_stats_kernel, ppo_rows_kernel, logits_gradient_kernel)

    def variants():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    def run(num_tokens):
        step = Step(cuda_triton, num_tokens)
        step.backward(step.forward())

    run(64)
    before = variants()
    assert all(before)
    for num_tokens in (1, 2, 7, 33, 100, 128, 129, 250):
        run(num_tokens)
    assert variants() == before


# verl's policy loss alone is 81 launches on vectors of tokens, as long as one read of a small shard.
def test_a_step_is_four_launches(cuda_triton):
    step = Step(cuda_triton, 64)
    step.backward(step.forward())
    loss, forward = kernels_in(step.forward)
    _, backward = kernels_in(step.backward, loss)
    assert len(forward) == 3, forward
    assert len(backward) == 1, backward
