"""Answers of an earlier run in place of new ones: each step's `Experience` from the rows of its dump.

A dump holds what was sampled, how it scored and which groups were trained on; all that stays as it was. Advantages are
computed anew, so that `algorithm.advantage` may differ. The prompts come from data.train: a row tells which one it
answers and a hash of the ids that the prompt had, which must be those it has now.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rest_megatron.config.check import read_model_config
from rest_megatron.config.schema import Config
from rest_megatron.data.rows import (
    LARGEST_FLOAT32,
    NUMBER,
    BadRow,
    as_object,
    describe,
    field,
    first_faults,
    read_records,
    vector,
)
from rest_megatron.errors import DataError
from rest_megatron.observe.response import read_mask
from rest_megatron.step.collect import group_advantages
from rest_megatron.step.dump import prompt_hash
from rest_megatron.types import Experience, Prompt, Sample, Score

FINISH_REASONS = ("stop", "length")


@dataclass(frozen=True)
class DumpedAnswer:
    """One row of a dump."""

    prompt: Prompt
    sample: Sample
    score: Score
    trained: bool
    rounds: int


class DumpReader:
    """Reads the rows of a step's answers.

    Args:
        config: sizes of a step.
        prompts: those of data.train.
        vocab_size: the model's.
    """

    def __init__(self, config: Config, prompts: Sequence[Prompt], vocab_size: int) -> None:
        self.config = config
        self.prompts = {prompt.index: prompt for prompt in prompts}
        self.hashes: dict[int, str] = {}
        self.vocab_size = vocab_size

    def experience(self, path: Path) -> Experience:
        """The answers in a file. Raises DataError as `answers` does."""
        answers, size = self.answers(path), self.config.rollout.group_size
        groups = [answers[i : i + size] for i in range(0, len(answers), size)]
        scores = [[answer.score for answer in group] for group in groups]
        return Experience(
            prompts=[group[0].prompt for group in groups],
            groups=[[answer.sample for answer in group] for group in groups],
            scores=scores,
            advantages=group_advantages(scores, self.config.algorithm),
            num_trained=sum(group[0].trained for group in groups),
            rounds=answers[0].rounds,
            seconds=0.0,
            reward_seconds=0.0,
        )

    def answers(self, path: Path) -> list[DumpedAnswer]:
        """The rows of a file. Raises DataError for those that cannot be used, or are not the answers of one step."""
        records = read_records(path)
        answers, faults = [], []
        for where, row in records:
            try:
                answers.append(self._answer(as_object(row)))
            except BadRow as fault:
                faults.append(f"{where}: {fault}")
        if not faults:
            faults = list(self._broken_groups([where for where, _ in records], answers))
        if faults:
            title = f"{path}: faults in its {len(records)} rows: {len(faults)} (rows count from 0, lines from 1)"
            fix = "  Replay a whole dump, with the data.train, tokenizer, data.chat_template and rollout.* of its run"
            raise DataError("\n".join([title, *first_faults(faults), fix]))
        return answers

    def _answer(self, row: Mapping) -> DumpedAnswer:
        prompt, sample = self._prompt(row), self._sample(row)
        parts = field(row, "parts", dict)
        score = Score(
            total=_number(row, "score"),
            format=_number(row, "format"),
            correctness=_number(row, "correctness"),
            parts={name: _number(parts, name, "parts.") for name in parts},
            reason=field(row, "reason", str),
        )
        sample = replace(sample, prompt_ids=prompt.token_ids)
        return DumpedAnswer(prompt, sample, score, field(row, "trained", bool), _whole(row, "rounds", 1))

    def _prompt(self, row: Mapping) -> Prompt:
        number, tokens = _whole(row, "prompt", 0), _whole(row, "prompt_tokens", 1)
        prompt = self.prompts.get(number)
        if prompt is None:
            raise BadRow(f"field 'prompt' is {number}, which is not a row of data.train={self.config.data.train}")
        if number not in self.hashes:
            self.hashes[number] = prompt_hash(prompt.token_ids)
        said, found = field(row, "prompt_hash", str), self.hashes[number]
        if (tokens, said) != (len(prompt.token_ids), found):
            raise BadRow(
                f"field 'prompt_hash' is {describe(said)} of {tokens} tokens, but that of row {number} of data.train="
                f"{self.config.data.train} is {found} of {len(prompt.token_ids)}: another prompt, tokenizer or template"
            )
        return prompt

    def _sample(self, row: Mapping) -> Sample:
        """Without the ids of its prompt."""
        ids, longest = vector(row, "ids", (int,), "ints", None), self.config.rollout.max_new_tokens
        if not 0 < len(ids) <= longest:
            raise BadRow(f"field 'ids' has {len(ids)} entries, must have 1 to rollout.max_new_tokens={longest}")
        if min(ids) < 0 or max(ids) >= self.vocab_size:
            vocabulary = f"0..{self.vocab_size - 1}, the vocabulary of model.path={self.config.model.path}"
            raise BadRow(f"field 'ids' spans {min(ids)} to {max(ids)}, must lie in {vocabulary}")
        log_probs = vector(row, "log_probs", NUMBER, "numbers", len(ids))
        broken = next((value for value in log_probs if not _is_finite(value)), None)
        if broken is not None:
            raise BadRow(f"field 'log_probs' holds {describe(broken)}, must be finite")
        reason = field(row, "finish_reason", str)
        if reason not in FINISH_REASONS:
            raise BadRow(f"field 'finish_reason' is {describe(reason)}, must be {' or '.join(FINISH_REASONS)}")
        version, mask = _whole(row, "weight_version", 0), read_mask(row, len(ids))
        return Sample((), tuple(ids), tuple(map(float, log_probs)), reason, version, tuple(mask))

    def _broken_groups(self, wheres: Sequence[str], answers: Sequence[DumpedAnswer]) -> Iterator[str]:
        """What keeps the rows from being the groups of a step."""
        rollout, size = self.config.rollout, self.config.rollout.group_size
        for number, (where, answer) in enumerate(zip(wheres, answers, strict=True)):
            start = number - number % size
            first = answers[start]
            if answer.prompt.index != first.prompt.index:
                yield (
                    f"{where}: field 'prompt' is {answer.prompt.index}, but {wheres[start]} of the same group has "
                    f"{first.prompt.index}; rollout.group_size={size} answers to a prompt follow each other"
                )
            if answer.trained != first.trained or (answer.trained and not answers[max(0, start - 1)].trained):
                yield f"{where}: field 'trained' is {answer.trained}; whole groups are trained on, the first of a step"
            if answer.rounds != answers[0].rounds:
                yield f"{where}: field 'rounds' is {answer.rounds}, in {wheres[0]} {answers[0].rounds}"
        count, rest = divmod(len(answers), size)
        if rest:
            yield f"{wheres[-1]} is the last, and {len(answers)} rows are not a multiple of rollout.group_size={size}"
        trained = sum(answer.trained for answer in answers) // size
        wanted = rollout.prompts_per_step
        if not trained <= wanted <= count:
            said = f"{count} groups, {trained} of them trained on"
            yield f"{wheres[-1]} is the last: {said}; rollout.prompts_per_step={wanted} must lie between the two"


class Replay:
    """The dumps in the directory train.replay, one of each step; see `DumpReader`."""

    def __init__(self, config: Config, prompts: Sequence[Prompt], vocab_size: int) -> None:
        assert config.train.replay is not None  # config.check: debug=train_only needs it
        self.steps = range(1, config.train.steps + 1)
        self.directory = Path(config.train.replay)
        self.reader = DumpReader(config, prompts, vocab_size)

    def check(self) -> None:
        """Read the dumps of all steps.

        Raises DataError for those that are missing, and for the rows of the first that cannot be used.
        """
        missing = [step for step in self.steps if not self._path(step).is_file()]
        if missing:
            fix = f"set train.steps={missing[0] - 1}" if missing[0] > 1 else "name the rollouts directory of a run"
            raise DataError(
                f"train.replay={self.directory} holds no {self._path(missing[0]).name}; train.steps={self.steps[-1]} "
                f"needs step-1.jsonl to step-{self.steps[-1]}.jsonl, {len(missing)} of them are missing\n"
                f"  Dump them, or {fix}"
            )
        for step in self.steps:
            self.reader.answers(self._path(step))

    def experience(self, step: int) -> Experience:
        """The answers of a step, counted from 1. Raises DataError for rows that cannot be used."""
        return self.reader.experience(self._path(step))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step}.jsonl"


def open_replay(config: Config, prompts: Sequence[Prompt]) -> Replay:
    """The dumps of train.replay, all of them read and checked. Raises DataError."""
    replay = Replay(config, prompts, read_model_config(config)["vocab_size"])
    replay.check()
    return replay


def _whole(row: Mapping, name: str, least: int) -> int:
    value = field(row, name, object)
    if type(value) is not int or value < least:  # True is no number
        raise BadRow(f"field {name!r} is {describe(value)}, must be a whole number of at least {least}")
    return value


def _number(row: Mapping, name: str, holder: str = "") -> float:
    value = field(row, name, object)
    try:
        number = float(value) if isinstance(value, NUMBER) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer that no float can hold
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"field {holder + name!r} is {describe(value)}, must be a finite number")
    return number


def _is_finite(value: float) -> bool:
    """As a float32; JSON has integers that no float can hold."""
    return abs(value) <= LARGEST_FLOAT32
