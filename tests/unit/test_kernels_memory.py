"""No full-precision copy of the logits exists at any moment, forward or backward."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rest_kernels import vocab_parallel_ppo_loss

MIB = 1 << 20


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensor storages that operators made and that are still alive: now and at most."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._references = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        outputs = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, torch.Tensor):
                self._track(leaf, is_input=leaf.untyped_storage()._cdata in inputs)
        return outputs

    def _track(self, tensor, is_input):
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self._references:
            if is_input:
                return
            self._references[address] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self._references[address] += 1
        weakref.finalize(tensor, self._release, address, size)

    def _release(self, address, size):
        self._references[address] -= 1
        if self._references[address] == 0:
            del self._references[address]
            self.live -= size


def test_the_meter_sees_a_full_precision_copy():
    logits = torch.zeros(64, 4096, dtype=torch.bfloat16)
    with PeakMemory() as memory:
        total = logits.float().sum()
        del total
    assert memory.peak == 64 * 4096 * 4 + 4
    assert memory.live == 0


@pytest.mark.parametrize("case", ["all rows", "some rows", "slice", "padding"])
def test_extra_memory_is_a_few_mib(case):
    num_tokens, vocab = 512, 32768
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, num_tokens // 4, vocab, generator=generator).bfloat16().requires_grad_()
    weights = torch.ones(4, num_tokens // 4)
    if case == "some rows":
        weights[:, ::2] = 0
    labels = torch.randint(0, 30000, weights.shape, generator=generator)
    zeros = torch.zeros(weights.shape)
    cut = slice(1, None) if case == "slice" else slice(None)
    view = logits[:, cut]
    vectors = [vector[:, cut] for vector in (labels, zeros - 10, zeros + 1, weights)]
    with PeakMemory() as memory:
        result = vocab_parallel_ppo_loss(
            view, *vectors, entropy_coef=0.01, vocab_size=30000 if case == "padding" else None
        )
        forward = memory.peak
        (grad,) = torch.autograd.grad(result.loss, view)
    assert forward <= 5 * MIB
    assert memory.peak - grad.nbytes <= 5 * MIB
