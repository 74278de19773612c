"""`weigh`: the region and the weight of every token of answers on file, as training would weigh them.

A row {"ids": [...]} may hold `entropy`, `collision` and `hidden_norm_squared` of each token, and `think_open`, true
where the prompt has already opened the thought. It comes back as {"ids", "regions", "weights"}, and `entropy` when it
was given. Region means are those of the whole file, or of each answer with weights.scope=response. Where what the rule
reads is missing, regions weigh 1 before the curriculum. An answer ends at its first end-of-turn token; what follows is
padding, of region format and weight 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import Tensor

from rest_megatron.commands.rows import Fault, parse_lines, read_think_open, write_rows
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.data.rows import BadRow, describe, field
from rest_megatron.data.tokenizer import load_tokenizer
from rest_megatron.files import FileArguments
from rest_megatron.grammar import GRAMMARS, Grammar
from rest_megatron.method.feedback import FeedbackState
from rest_megatron.method.reference_weights import reference_weights
from rest_megatron.method.regions import Region, label_regions
from rest_megatron.method.schedule import scheduled_weights
from rest_megatron.method.weights import READ_BY_RULE, region_sums, token_statistic, token_weights
from rest_megatron.tokens import stop_token_ids, token_bytes

# What each statistic can be, with room for rounding; no vocabulary has an entropy of 50 nats.
BOUNDS = {"entropy": (-1e-4, 50.0), "collision": (0.0, 1.0 + 1e-4), "hidden_norm_squared": (0.0, 3.4e38)}
STATISTICS = tuple(BOUNDS)


@dataclass(frozen=True)
class Answer:
    """One row. Padding after the end-of-turn token is in `ids` and `pieces` alone."""

    ids: list[int]
    pieces: list[bytes]
    regions: Tensor
    """[answer tokens] int64, `Region`."""
    statistics: dict[str, list[float]]
    """Those of STATISTICS that the row holds, one value per id."""


@dataclass(frozen=True)
class AnswerReader:
    """From a row to an Answer; raises BadRow."""

    token_table: Sequence[bytes]
    stop_ids: frozenset[int]
    grammar: Grammar

    def __call__(self, row: dict) -> Answer:
        """Read and check one row."""
        ids = field(row, "ids", list)
        for position, token in enumerate(ids):
            if type(token) is not int or not 0 <= token < len(self.token_table):
                raise BadRow(
                    f"ids[{position}] is {describe(token)}, must be a token id in [0, {len(self.token_table) - 1}]"
                )
        end = next((position for position, token in enumerate(ids) if token in self.stop_ids), None)
        pieces = [self.token_table[token] for token in ids]
        length = len(ids) if end is None else end + 1
        labels = label_regions(
            pieces[:length],
            stop_token=end is not None,
            grammar=self.grammar,
            think_open=read_think_open(row, self.grammar),
        )
        statistics = {name: _numbers(row, name, len(ids)) for name in STATISTICS if row.get(name) is not None}
        return Answer(ids, pieces, torch.tensor(labels, dtype=torch.int64), statistics)


def main(config: Config, files: FileArguments, stream: TextIO) -> None:
    """Weigh files.input into files.output; files.progress and files.step say where in the run.

    Raises ConfigError, CheckpointError for a tokenizer that cannot be read, DataError for the files.
    """
    settings = config.weights
    if settings.curriculum == "feedback" and settings.rule != "reference":
        fix = "Use weights.curriculum=linear with progress=..., or none"
        refuse(config, "weights.curriculum", "needs the accuracies of every step so far, which no file holds", fix)
    tokenizer = load_tokenizer(files.tokenizer, f"tokenizer={files.tokenizer}")
    stop_ids = frozenset(stop_token_ids(files.tokenizer, tokenizer))
    reader = AnswerReader(token_bytes(tokenizer), stop_ids, GRAMMARS[config.data.answer_format])
    answers = list(parse_lines(files.input, reader))
    write_rows(files.output, _weighed(answers, config, files), stream)
    needed = READ_BY_RULE.get(settings.rule, set())
    lacking = sum(1 for a in answers if isinstance(a, Answer) and not needed <= a.statistics.keys())
    if lacking:
        names = " and ".join(sorted(needed))
        stream.write(f"{lacking} rows lack {names}, which weights.rule={settings.rule} reads\n")


def _weighed(answers: Sequence[Answer | Fault], config: Config, files: FileArguments) -> Iterator[dict | Fault]:
    """The rows to write."""
    settings = config.weights
    measure = settings.rule != "reference"
    sums = [_region_sums(a, settings.rule) for a in answers if isinstance(a, Answer)] if measure else []
    whole_file = sum(sums) if sums else None
    own = iter(sums)
    for answer in answers:
        if isinstance(answer, Fault):
            yield answer
        elif measure:
            totals = next(own) if settings.scope == "response" else whole_file
            yield _row(answer, _measured_weights(answer, totals, config, files.progress))
        else:
            yield _row(answer, reference_weights(answer.pieces, step=files.step, answer_length=len(answer.regions)))


def _region_sums(answer: Answer, rule: str) -> Tensor:
    """float64 [2, 4]: sum and count of the rule's statistic in each region; zeros where the row lacks it."""
    if not READ_BY_RULE[rule] <= answer.statistics.keys():
        return torch.zeros(2, len(Region), dtype=torch.float64)
    length = len(answer.regions)
    unread = [0.0] * length
    vectors = (torch.tensor(answer.statistics.get(name, unread)[:length], dtype=torch.float64) for name in STATISTICS)
    return torch.stack(region_sums(token_statistic(rule, *vectors), answer.regions))


def _measured_weights(answer: Answer, totals: Tensor, config: Config, progress: float) -> list[float]:
    """One weight per id. totals: sums and counts [2, 4] whose means the rule goes by."""
    by_region = scheduled_weights(totals[0] / totals[1], progress, FeedbackState(), config.weights)
    weights = token_weights(by_region, answer.regions, torch.zeros_like(answer.regions), num_sequences=1)
    return weights.tolist() + [0.0] * (len(answer.ids) - len(answer.regions))


def _row(answer: Answer, weights: list[float]) -> dict:
    padding = [Region.FORMAT] * (len(answer.ids) - len(answer.regions))
    regions = [Region(label).label for label in answer.regions.tolist() + padding]
    row = {"ids": answer.ids, "regions": regions, "weights": weights}
    if "entropy" in answer.statistics:
        row["entropy"] = answer.statistics["entropy"]
    return row


def _numbers(row: dict, name: str, length: int) -> list[float]:
    """The list `row[name]` of `length` numbers within BOUNDS; BadRow when it is not one."""
    values = field(row, name, list)
    if len(values) != length:
        raise BadRow(f"field {name!r} holds {len(values)} values for {length} ids; one for each is needed")
    low, high = BOUNDS[name]
    for position, value in enumerate(values):
        if type(value) not in (int, float) or not low <= value <= high:
            raise BadRow(f"{name}[{position}] is {describe(value)}, must be a number from {low:g} to {high:g}")
    return values
