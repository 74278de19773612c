"""The order in which training visits the prompts: one integer that resumes exactly."""

import random

from rest_megatron.errors import CheckpointError, DataError


class PromptCursor:
    """Walks through seeded permutations of the prompts, a new one each epoch.

    The state is the number of prompts handed out so far, so a resumed run continues the unbroken order, at an epoch
    boundary too. Equal on every rank and platform for the same (num_prompts, seed).
    """

    def __init__(self, num_prompts: int, seed: int) -> None:
        """num_prompts: how many prompts there are, at least 1 (else DataError)."""
        if num_prompts < 1:
            raise DataError(f"there are {num_prompts} prompts to train on; at least one is needed")
        self.num_prompts = num_prompts
        self.seed = seed
        self.position = 0
        self._epoch, self._order = 0, _epoch_order(num_prompts, seed, 0)

    def next_batch(self, size: int) -> list[int]:
        """Return the next `size` prompt indices and move on; a batch may span epochs."""
        batch = [self._at(self.position + step) for step in range(size)]
        self.position += size
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the state as plain JSON."""
        return {"position": self.position, "num_prompts": self.num_prompts, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken; CheckpointError when it belongs to other data or another seed."""
        mine = {"num_prompts": self.num_prompts, "seed": self.seed}
        saved = {name: state.get(name) for name in mine}
        if saved != mine:
            raise CheckpointError(
                f"the data position was saved with {saved}, this run has {mine}; resume with the same data and run.seed"
            )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise CheckpointError(f"the saved data position is {position!r}, must be an integer of at least 0")
        self.position = position

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_prompts)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, _epoch_order(self.num_prompts, self.seed, epoch)
        return self._order[offset]


def _epoch_order(num_prompts: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the prompts. The standard library's generator, whose stream does not change with versions."""
    order = list(range(num_prompts))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order
