"""The protocol every rollout engine follows, and the record of one sampled answer."""

from collections.abc import Sequence
from typing import Protocol

from rest_megatron.types import Sample


class RolloutEngine(Protocol):
    """Where answers come from. Every method is collective over all ranks of the trainer."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        seed: int,
        max_new_tokens: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[list[Sample]]:
        """`group_size` answers to each prompt, the same lists on every rank.

        max_new_tokens: the longest answer to each prompt; None: rollout.max_new_tokens for all.
        numbers: that of each prompt, from 0 on, which its draws go by; None: its place. A prompt keeps its draws when
        others are left out.
        """

    def publish(self, version: int) -> None:
        """Sample from the actor's current weights from now on, and stamp answers with `version`."""

    def sleep(self) -> None:
        """Give back the accelerator's memory until the next `publish`, where the engine shares it with the actor."""

    def close(self) -> None:
        """Give back whatever the engine holds."""
