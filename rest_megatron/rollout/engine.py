"""The protocol every rollout engine follows, and the record of one sampled answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One sampled answer. The ids are those the engine drew; nothing is ever tokenised again."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Sampled ids; the stop token is the last of them when finish_reason is "stop"."""
    log_probs: tuple[float, ...]
    """Natural log of each sampled id's probability at the sampling temperature."""
    finish_reason: str
    """"stop" or "length"."""
    weight_version: int
    """How many optimizer steps the weights that drew it had seen."""


class RolloutEngine(Protocol):
    """Where answers come from. Every method is collective over all ranks of the trainer."""

    def generate(self, prompts: Sequence[Sequence[int]], *, group_size: int, seed: int) -> list[list[Sample]]:
        """`group_size` answers to each prompt, the same lists on every rank."""

    def publish(self, version: int) -> None:
        """Sample from the actor's current weights from now on, and stamp answers with `version`."""

    def close(self) -> None:
        """Give back whatever the engine holds."""
