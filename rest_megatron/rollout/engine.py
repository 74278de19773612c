"""The protocol that every rollout engine follows."""

from collections.abc import Sequence
from typing import Protocol

from rest_megatron.types import Request, Sample


class RolloutEngine(Protocol):
    """Where answers come from. Every method is collective over all ranks of the trainer."""

    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int) -> list[list[Sample]]:
        """`group_size` answers to each request, in their order, the same lists on every rank."""

    def publish(self, version: int) -> None:
        """Sample from the actor's current weights from now on, and stamp answers with `version`."""

    def sleep(self) -> None:
        """Give back the accelerator's memory until the next `publish`, where the engine shares it with the actor."""

    def close(self) -> None:
        """Give back whatever the engine holds."""


def number_requests(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Request]:
    """One for each prompt's token ids, numbered by its place, with answers of at most `max_new_tokens` ids."""
    return [Request(prompt, max_new_tokens, number) for number, prompt in enumerate(prompts)]
