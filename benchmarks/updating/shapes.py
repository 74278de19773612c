"""The steps that are timed: lengths of prompts and answers, random tokens, advantages and weights.

Needs torch alone, for peers read it in environments of their own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
QUICKSTART_MODEL = HERE.parent.parent / "examples" / "quickstart" / "model" / "config.json"
TOOLRL_LENGTHS = HERE / "toolrl_lengths.json"
# Lengths that are not read from a file lie evenly within this share of their mean.
SPREAD = 0.25
QWEN3 = {
    "vocab_size": 32768,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
TINY = {
    **QWEN3,
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@dataclass(frozen=True)
class Shape:
    """A step's size.

    prompt: mean tokens. turns: mean tokens of what the policy said and a tool answered, in turns, the policy first and
    last. at_once: answers in a micro-batch of a padded loop; packs hold as many tokens as that many of the longest.
    model: Qwen3Config's fields. lengths: a file with `prompt_tokens` and `answer_tokens` in place of the means.
    """

    prompt: int
    turns: tuple[int, ...]
    groups: int = 4
    group_size: int = 8
    at_once: int = 2
    model: dict[str, Any] | None = None
    lengths: Path | None = None

    def model_fields(self) -> dict[str, Any]:
        """Of a Qwen3Config; None stands for the quickstart's.

        Without its padding token: Hugging Face gives that one an embedding of 0, of which random tokens would make use.
        """
        fields = dict(self.model or json.loads(QUICKSTART_MODEL.read_text()))
        return fields | {"pad_token_id": None}


SHAPES = {
    "700/100": Shape(700, (100,), model=QWEN3, lengths=TOOLRL_LENGTHS),
    "200/300": Shape(200, (300,), model=QWEN3),
    "40/35": Shape(40, (35,), groups=8, at_once=64),
    "turns": Shape(500, (60, 80, 60, 80, 60), model=QWEN3),
    "tiny": Shape(12, (5, 4, 6), model=TINY),
}


class Answer(NamedTuple):
    """Token ids; `mask` says which of the response were sampled."""

    prompt: list[int]
    response: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Step:
    """Groups of answers one after the other; vectors are float32 over all sampled tokens, in the order of the answers.

    loss_weights: token weights over answer's length and number of answers, so that the loss is a plain sum.
    """

    answers: list[Answer]
    advantages: Tensor
    loss_weights: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer with its prompt."""
        return [len(answer.prompt) + len(answer.response) for answer in self.answers]

    @property
    def targets(self) -> list[int]:
        """Sampled tokens of each answer."""
        return [sum(answer.mask) for answer in self.answers]

    def parts(self, vector: Tensor, at_once: int) -> list[Tensor]:
        """A vector over all sampled tokens, cut after every `at_once` answers."""
        counts = self.targets
        return list(vector.split([sum(counts[i : i + at_once]) for i in range(0, len(counts), at_once)]))


def get_shape(name: str, groups: int | None = None, at_once: int | None = None) -> Shape:
    """A shape of the table, with another number of groups or of answers at once where given."""
    shape = SHAPES[name]
    return replace(shape, groups=groups or shape.groups, at_once=at_once or shape.at_once)


def make_step(shape: Shape, zeros: bool) -> Step:
    """The same step on every call. zeros: a quarter of the groups, one at least, has advantage 0."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = shape.model_fields()["vocab_size"]

    def draw(length: int) -> list[int]:
        return torch.randint(1, vocab_size, (length,), generator=generator).tolist()

    count = shape.groups * shape.group_size
    prompts, turns = _lengths(shape, count, generator)
    answers = []
    for group, length in enumerate(prompts):
        prompt = draw(length)
        for number in range(group * shape.group_size, (group + 1) * shape.group_size):
            own = [lengths[number] for lengths in turns]
            mask = [turn % 2 == 0 for turn, length in enumerate(own) for _ in range(length)]
            answers.append(Answer(prompt, draw(sum(own)), mask))
    advantages = torch.randn(shape.groups, shape.group_size, generator=generator)
    advantages -= advantages.mean(1, keepdim=True)
    if zeros:
        advantages[: max(1, shape.groups // 4)] = 0
    targets = torch.tensor([sum(answer.mask) for answer in answers])
    weights = torch.rand(int(targets.sum()), generator=generator) + 0.5
    return Step(
        answers, advantages.flatten().repeat_interleave(targets), weights / targets.repeat_interleave(targets) / count
    )


def _lengths(shape: Shape, count: int, generator: torch.Generator) -> tuple[list[int], list[list[int]]]:
    """Tokens of each prompt, and of each turn of each answer: evenly taken from all that may be, answers shuffled."""
    if shape.lengths is not None:
        found = json.loads(shape.lengths.read_text())
        prompts, turns = found["prompt_tokens"], [found["answer_tokens"]]
    else:
        prompts, turns = _around(shape.prompt), [_around(mean) for mean in shape.turns]
    chosen = [_evenly(lengths, count) for lengths in turns]
    order = [torch.randperm(count, generator=generator).tolist() for _ in turns]
    shuffled = [[lengths[i] for i in places] for lengths, places in zip(chosen, order, strict=True)]
    return _evenly(prompts, shape.groups), shuffled


def _around(mean: int) -> range:
    return range(round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD)) + 1)


def _evenly(lengths: Sequence[int], count: int) -> list[int]:
    """The middles of `count` equal parts of the sorted lengths."""
    ordered = sorted(lengths)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]
