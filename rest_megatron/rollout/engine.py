"""The protocol every rollout engine follows, and the record of one sampled answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sample:
    """One sampled answer. The ids are those the engine drew; nothing is ever tokenised again."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Everything after the prompt; the stop token is the last of them when finish_reason is "stop"."""
    log_probs: tuple[float, ...]
    """Natural log of each id's probability at the sampling temperature; 0 for an id that was not sampled."""
    finish_reason: str
    """"stop" or "length"."""
    weight_version: int
    """How many optimizer steps the weights that drew it had seen."""
    response_mask: tuple[bool, ...] = ()
    """Whether each id was sampled, where tools answered in between; empty: all were."""

    def sampled(self, values: Sequence) -> list:
        """Of `values`, one for each id, those of the sampled ids."""
        return [v for v, own in zip(values, self.response_mask or (True,) * len(values), strict=True) if own]

    @property
    def num_sampled(self) -> int:
        """How many of the ids were sampled."""
        return sum(self.response_mask) if self.response_mask else len(self.token_ids)


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
