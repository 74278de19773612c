"""`weigh`: the region and the weight of every token of answers on file, as training would weigh them.

A row {"ids": [...]} may hold `entropy`, `collision` and `hidden_norm_squared` of each token, and `think_open`, true
where the prompt has already opened the thought. It comes back as {"ids", "regions", "weights"}, and `entropy` when it
was given. Region means are those of the whole file, or of each answer with weights.scope=response; with --run those
that a run had in a step, which weights.freeze_after may have kept from earlier ones. Where what the rule reads is
missing, regions weigh 1 before the curriculum. An answer ends at its first end-of-turn token; what follows is
padding, of region format and weight 0.

Rules of single tokens (`method/token_rules.py`) take the file for the batch; rsi_s reads `log_probs`, too. A row
without what such a rule reads weighs 1 everywhere.

A dialogue's row tells by `response_mask` which ids were sampled, and comes back with it. Each turn has the regions of
an answer of its own; what tools said has null for region and weight, and may have it for the statistics.
"""

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from rest_megatron.commands.catalogue import Weigh
from rest_megatron.commands.rows import Fault, parse_lines, read_think_open, write_rows
from rest_megatron.config.method import WeightsRule
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config, WeightsConfig
from rest_megatron.data.answers import think_open, turns
from rest_megatron.data.rows import BadRow, describe, field
from rest_megatron.data.tokenizer import load_tokenizer
from rest_megatron.data.tokens import stop_token_ids, token_bytes
from rest_megatron.errors import DataError
from rest_megatron.grammar import GRAMMARS, Grammar
from rest_megatron.method.curriculum import scheduled_weights
from rest_megatron.method.reference_weights import reference_weights
from rest_megatron.method.regions import Region, label_regions
from rest_megatron.method.token_rules import TOKEN_RULES, TokenFacts, token_rule_weights
from rest_megatron.method.weights import RULES, WeightState, region_sums, token_statistic, token_weights
from rest_megatron.observe.metrics import METRICS, read_rows
from rest_megatron.observe.response import read_mask
from rest_megatron.utils.text import counted

# What each statistic can be, with room for rounding; no vocabulary has an entropy of 50 nats.
STATISTICS = ("entropy", "collision", "hidden_norm_squared")
BOUNDS = dict(zip(STATISTICS, ((-1e-4, 50.0), (0.0, 1.0 + 1e-4), (0.0, 3.4e38)), strict=True))
BOUNDS["log_probs"] = (-3.4e38, 1e-4)


@dataclass(frozen=True)
class Turn:
    """One of the assistant's."""

    start: int
    """Its first place among the row's ids."""
    pieces: list[bytes]
    """Of its tokens, padding included."""
    length: int
    """Tokens up to and with the end-of-turn token; the others are padding."""


@dataclass(frozen=True)
class Answer:
    """One row. An answer token is one that was sampled and is no padding."""

    ids: list[int]
    mask: list[bool]
    """Whether each id was sampled; empty: all were."""
    turns: list[Turn]
    regions: Tensor
    """[answer tokens] int64, `Region`."""
    statistics: dict[str, list[float | None]]
    """What the row holds of STATISTICS and of what the rule reads: a value per id, any where it was not sampled."""

    @property
    def places(self) -> list[int]:
        """Of the answer tokens, among `ids`."""
        return [turn.start + i for turn in self.turns for i in range(turn.length)]

    def spread(self, values: Sequence, padding: object) -> list:
        """One entry per id, from one per answer token: `padding` there, and None where tools spoke."""
        spread = [padding if own else None for own in self.mask or [True] * len(self.ids)]
        for place, value in zip(self.places, values, strict=True):
            spread[place] = value
        return spread


@dataclass(frozen=True)
class AnswerReader:
    """From a row to an Answer; raises BadRow."""

    token_table: Sequence[bytes]
    stop_ids: frozenset[int]
    grammar: Grammar
    reads: Set[str]
    """What the rule reads; checked in a row that has it, as STATISTICS are."""

    def __call__(self, row: dict) -> Answer:
        """Read and check one row."""
        ids = field(row, "ids", list)
        for position, token in enumerate(ids):
            if type(token) is not int or not 0 <= token < len(self.token_table):
                raise BadRow(
                    f"ids[{position}] is {describe(token)}, must be a token id in [0, {len(self.token_table) - 1}]"
                )
        mask, pieces = read_mask(row, len(ids)), [self.token_table[token] for token in ids]
        opened = read_think_open(row, self.grammar)
        found: list[Turn] = []
        labels: list[int] = []
        for span in turns(ids, mask):
            end = next((i for i, token in enumerate(ids[span], start=1) if token in self.stop_ids), None)
            turn = Turn(span.start, pieces[span], len(pieces[span]) if end is None else end)
            labels += label_regions(
                turn.pieces[: turn.length],
                stop_token=end is not None,
                grammar=self.grammar,
                think_open=think_open(ids[: span.start], self.token_table) if found else opened,
            )
            found.append(turn)
        sampled, names = mask or [True] * len(ids), {*STATISTICS, *self.reads}
        statistics = {
            name: _numbers(row, name, sampled) for name in BOUNDS if name in names and row.get(name) is not None
        }
        return Answer(ids, mask, found, torch.tensor(labels, dtype=torch.int64), statistics)


def main(config: Config, options: Weigh, stream: TextIO) -> None:
    """Weigh options.input into options.output; --progress or --step says where in the run.

    Raises ConfigError, CheckpointError for a tokenizer that cannot be read, DataError for the files, and where no row
    can be used.
    """
    settings = config.weights
    if settings.curriculum == "feedback" and settings.rule != "reference":
        fix = "Use weights.curriculum=linear with --progress, or none"
        refuse(config, "weights.curriculum", "needs the accuracies of every step so far, which no file holds", fix)
    if settings.rule == "measured":
        refuse(config, "weights.rule", "needs the gradients of a run, which no file holds", "Choose another rule")
    tokenizer = load_tokenizer(options.tokenizer, f"--tokenizer {options.tokenizer}")
    stop_ids = frozenset(stop_token_ids(options.tokenizer, tokenizer))
    needed = _reads(settings.rule)
    reader = AnswerReader(token_bytes(tokenizer), stop_ids, GRAMMARS[config.data.answer_format], needed)
    answers = list(parse_lines(options.input, reader))
    write_rows(options.input, options.output, _weighed(answers, config, options), stream)
    lacking = sum(1 for a in answers if isinstance(a, Answer) and not needed <= a.statistics.keys())
    if lacking:
        names = " and ".join(sorted(needed))
        rows = counted(lacking, "row")
        by_token = "their tokens weigh 1"
        by_region = "they are no part of a region's mean, and a region without a mean weighs 1"
        effect = by_token if settings.rule in TOKEN_RULES else by_region
        stream.write(f"{rows} without {names}, which weights.rule={settings.rule} reads: {effect}\n")


def _weighed(answers: Sequence[Answer | Fault], config: Config, options: Weigh) -> Iterator[dict | Fault]:
    """The rows to write."""
    settings = config.weights
    step, progress = options.resolved(config.train.steps)
    measure = settings.rule in RULES
    sums = [_region_sums(a, settings.rule) for a in answers if isinstance(a, Answer)] if measure else []
    totals = sum(sums, torch.zeros(2, len(Region), dtype=torch.float64))
    means = totals[0] / totals[1] if options.run is None else run_means(options.run, step)
    own = iter(sums)
    by_token = settings.rule in TOKEN_RULES
    batch_entropy = _batch_entropy([a for a in answers if isinstance(a, Answer)]) if by_token else torch.empty(0)
    for answer in answers:
        if isinstance(answer, Fault):
            yield answer
        elif measure:
            part = next(own)
            part_means = part[0] / part[1] if settings.scope == "response" else means
            yield _row(answer, _measured_weights(answer, part_means, config, progress))
        elif by_token:
            yield _row(answer, _token_weights(answer, batch_entropy, settings))
        else:
            yield _row(answer, _reference_weights(answer, step))


def run_means(run: Path, step: int) -> Tensor:
    """float64 [4]: the mean statistic of each region that a run's rule went by in `step`, from its metrics.

    nan for a region it had not seen. Raises DataError where they are not there.
    """
    path, names = run / METRICS, [f"statistic/{region.label}" for region in Region]
    row = next((row for row in read_rows(path) if row["step"] == step), None)
    if row is None or any(name not in row for name in names):
        what = (
            f"has no step {step}" if row is None else f"has no {names[0]} at step {step}: its weights had no statistic"
        )
        raise DataError(f"--run {run}: {path} {what}. Name a run of `train`, and a step it has finished")
    return torch.tensor([math.nan if row[name] is None else row[name] for name in names], dtype=torch.float64)


def _region_sums(answer: Answer, rule: WeightsRule) -> Tensor:
    """float64 [2, 4]: sum and count of the rule's statistic in each region; zeros where the row lacks it."""
    if not RULES[rule].reads <= answer.statistics.keys():
        return torch.zeros(2, len(Region), dtype=torch.float64)
    vectors = (_vector(answer, name) for name in STATISTICS)
    return torch.stack(region_sums(token_statistic(rule, *vectors), answer.regions))


def _measured_weights(answer: Answer, means: Tensor, config: Config, progress: float) -> list[float]:
    """One weight per answer token. means: float64 [4], of the rule's statistic in each region."""
    by_region = scheduled_weights(means, progress, WeightState(), config.weights)
    return token_weights(by_region, answer.regions, torch.zeros_like(answer.regions), num_sequences=1).tolist()


def _batch_entropy(answers: Sequence[Answer]) -> Tensor:
    """float64: the entropy of every answer token of the file, as far as it is given."""
    given = (answer for answer in answers if "entropy" in answer.statistics)
    return torch.cat([torch.empty(0, dtype=torch.float64), *(_vector(answer, "entropy") for answer in given)])


def _vector(answer: Answer, name: str) -> Tensor:
    """float64, one value per answer token: a statistic, or zeros where the row lacks it."""
    values = answer.statistics.get(name, [0.0] * len(answer.ids))
    return torch.tensor([values[place] for place in answer.places], dtype=torch.float64)


def _token_weights(answer: Answer, batch_entropy: Tensor, settings: WeightsConfig) -> list[float]:
    """One weight per answer token, by a rule of single tokens; 1 where the row lacks what the rule reads."""
    places = answer.places
    if not TOKEN_RULES[settings.rule].reads <= answer.statistics.keys():
        return [1.0] * len(places)
    later = [number > 0 for number, turn in enumerate(answer.turns) for _ in range(turn.length)]
    entropy, log_probs = _vector(answer, "entropy"), _vector(answer, "log_probs")
    index = torch.zeros_like(answer.regions)
    facts = TokenFacts(entropy, log_probs, index, 1, torch.tensor(later, dtype=torch.bool), batch_entropy)
    return token_rule_weights(facts, settings).tolist()


def _reads(rule: WeightsRule) -> Set[str]:
    """The statistics of a token that a rule reads."""
    if rule in TOKEN_RULES:
        return TOKEN_RULES[rule].reads
    return RULES[rule].reads if rule in RULES else set()


def _reference_weights(answer: Answer, step: int) -> list[float]:
    """One weight per answer token, each turn by itself."""
    weights = []
    for turn in answer.turns:
        weights += reference_weights(turn.pieces, step=step, answer_length=turn.length)[: turn.length]
    return weights


def _row(answer: Answer, weights: list[float]) -> dict:
    regions = [Region(label).label for label in answer.regions.tolist()]
    row = {
        "ids": answer.ids,
        "regions": answer.spread(regions, Region.FORMAT.label),
        "weights": answer.spread(weights, 0.0),
    }
    if answer.mask:
        row["response_mask"] = answer.mask
    if "entropy" in answer.statistics:
        row["entropy"] = answer.statistics["entropy"]
    return row


def _numbers(row: dict, name: str, sampled: Sequence[bool]) -> list[float | None]:
    """The list `row[name]`, with a number within BOUNDS where an id was sampled; BadRow when it is not one."""
    values = field(row, name, list)
    if len(values) != len(sampled):
        raise BadRow(f"field {name!r} holds {len(values)} values for {len(sampled)} ids; one for each is needed")
    low, high = BOUNDS[name]
    for position, (value, own) in enumerate(zip(values, sampled, strict=True)):
        if own and (type(value) not in (int, float) or not low <= value <= high):
            raise BadRow(f"{name}[{position}] is {describe(value)}, must be a number from {low:g} to {high:g}")
    return values
