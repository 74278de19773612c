"""Every record that passes from one package to another, in the order in which a step makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    index: row number in its file, from 0. messages: ({"role", "content"}, ...). ground_truth: the wanted answer.
    token_ids: the messages through the chat template, up to the opening of the assistant's turn.
    """

    index: int
    messages: tuple[dict[str, str], ...]
    ground_truth: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """Answers to one prompt, as an engine is asked for them."""

    prompt_ids: Sequence[int]
    max_new_tokens: int
    """Ids of the longest answer."""
    number: int
    """From 0 on; the draws go by it. A prompt keeps its draws when others are left out."""


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


@dataclass(frozen=True)
class Score:
    """A reward and where it comes from.

    total = format + correctness. parts: format (S_format), name, parameter_names, parameter_values and exact, each in
    [0, 1], the last four before the format is looked at. reason: "ok", else the first problem: one of `parse`'s table,
    then unwanted_tool_call, unwanted_response, no_tool_call, no_response, then missing_call, extra_call, wrong_name,
    wrong_parameter_names, wrong_parameter_values.
    """

    total: float
    format: float
    correctness: float
    parts: dict[str, float]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As files of answers and scores hold it."""
        return {
            "score": self.total,
            "format": self.format,
            "correctness": self.correctness,
            "parts": self.parts,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Experience:
    """Everything sampled for one step: a prompt, its group of answers and their scores at the same place of each list.

    The first `num_trained` groups are trained on, the others teach nothing and are left out of the loss.
    """

    prompts: list[Prompt]
    groups: list[list[Sample]]
    scores: list[list[Score]]
    advantages: Tensor
    """[prompts, group_size] float32."""
    num_trained: int
    rounds: int
    """How many rollouts it took."""
    seconds: float
    """Spent sampling."""
    reward_seconds: float
    publish_seconds: float = 0.0
    """Spent on giving the engine the weights."""

    @property
    def totals(self) -> Tensor:
        """[prompts, group_size] float64: the rewards."""
        return torch.tensor([[s.total for s in group] for group in self.scores], dtype=torch.float64)

    @property
    def trained(self) -> list[Sample]:
        """The answers trained on, prompt after prompt."""
        return [sample for group in self.groups[: self.num_trained] for sample in group]

    @property
    def all_scores(self) -> list[Score]:
        """Of every answer, prompt after prompt."""
        return [score for group in self.scores for score in group]


class Trajectory(NamedTuple):
    """Token ids of one answer, sampled or demonstrated."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    """Everything after the prompt; the answers of tools between turns included."""
    response_mask: Sequence[bool] = ()
    """Which response ids are targets; empty: all."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response, targets or not: all take memory."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def target_positions(self) -> Sequence[int]:
        """Where the targets lie among the response ids, ascending. Raises ValueError for a mask of another length."""
        if not self.response_mask:
            return range(len(self.response_ids))
        pairs = zip(range(len(self.response_ids)), self.response_mask, strict=True)
        return [i for i, wanted in pairs if wanted]

    @property
    def num_targets(self) -> int:
        """How many entries of a flat vector are this trajectory's; 0 when all is masked."""
        return len(self.target_positions)


@dataclass(frozen=True)
class MiniBatch:
    """A run of this rank's trajectories that share one optimizer step."""

    sequences: slice
    tokens: slice
    num_sequences_global: int


@dataclass(frozen=True)
class Batch:
    """This rank's share of a step's answers. Vectors hold one value per sampled token, in trajectory order."""

    trajectories: list[Trajectory]
    sample_index: list[int]
    """Of each trajectory: its number among the step's answers."""
    group_index: list[int]
    """Of each trajectory: its prompt's number."""
    num_groups: int
    """Prompts of the whole step, on all ranks."""
    advantages: Tensor
    """[T] float32: the answer's advantage, at each of its tokens."""
    regions: Tensor
    """[T] int64, `Region`."""
    sequence_index: Tensor
    """[T] int64: which trajectory each token belongs to."""
    rollout_log_probs: Tensor
    """[T] float32, as the engine drew them."""
    mini_batches: list[MiniBatch]
    imbalance: float = 1.0
    """Cost of the fullest rank's answers over the mean of all ranks."""

    @property
    def lengths(self) -> list[int]:
        """Sampled tokens of each trajectory."""
        return [t.num_targets for t in self.trajectories]


class TokenStats(NamedTuple):
    """Flat float32 vectors over target tokens, under the weights of the call."""

    log_probs: Tensor
    """Of the token itself, at the rollout's temperature."""
    entropy: Tensor
    collision: Tensor
    """sum_v p_v^2."""
    hidden_norm_squared: Tensor
    """|h|^2 of the last hidden state."""


class PolicyStreams(NamedTuple):
    """What the policy loss reads besides tokens: flat float32 vectors over this rank's target tokens.

    `loss_weights` already hold mask, token weight, importance and the GLOBAL normaliser. Entries of a token that weighs
    0 are not read. old_log_probs: the actor's, before the step's updates. ref_log_probs: the initial policy's, needed
    when algorithm.kl_coef > 0.
    """

    old_log_probs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    ref_log_probs: Tensor | None = None

    def select(self, index: slice | Tensor) -> "PolicyStreams":
        """The entries at `index`."""
        reference = None if self.ref_log_probs is None else self.ref_log_probs[index]
        return PolicyStreams(self.old_log_probs[index], self.advantages[index], self.loss_weights[index], reference)
