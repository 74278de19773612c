"""The weights a run started from, for a KL term: a second copy of this rank's shard, in CPU memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rest_megatron.model.model import Policy


class InitialWeights:
    """A copy of `policy`'s parameters at the time of the call, in their working precision."""

    def __init__(self, policy: Policy) -> None:
        saved = [parameter.detach().to("cpu", copy=True) for parameter in policy.parameters()]
        # Pinned memory is what a GPU copies from and to at full speed.
        self.saved = [copy.pin_memory() if torch.cuda.is_available() else copy for copy in saved]

    @contextmanager
    def in_place_of(self, policy: Policy) -> Iterator[None]:
        """Inside, `policy` computes with the saved weights; afterwards with its own again, bit for bit."""
        self._exchange(policy)
        try:
            yield
        finally:
            self._exchange(policy)

    @torch.no_grad()
    def _exchange(self, policy: Policy) -> None:
        """One tensor at a time, so that no third copy of the model exists."""
        for parameter, saved in zip(policy.parameters(), self.saved, strict=True):
            current = parameter.clone()
            parameter.copy_(saved)
            saved.copy_(current)
