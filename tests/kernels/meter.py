"""How much memory tensors take while a test runs."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensor storages that operators made and that are still alive: now and at most."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._references = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        inputs = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, torch.Tensor)}
        inputs |= {leaf._cdata for leaf in leaves if isinstance(leaf, torch.UntypedStorage)}
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
