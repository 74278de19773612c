"""The `prepare` command: a tool-use data set as training rows, one per action of the assistant."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from rest_megatron.commands.catalogue import Prepare
from rest_megatron.config.schema import AnswerFormat, Config
from rest_megatron.data.chat import read_messages
from rest_megatron.data.convert import SOURCES
from rest_megatron.data.convert.render import native_row, rlla_row
from rest_megatron.data.convert.steps import Step, steps, unusable
from rest_megatron.data.rows import BadRow, as_object, first_faults, read_records, text
from rest_megatron.errors import ConfigError, DataError
from rest_megatron.reward.paper import parse_ground_truth, score
from rest_megatron.utils.files import replacing
from rest_megatron.utils.text import counted

PAYLOAD_COLUMNS = ("conversations", "messages", "tools", "multiple_tools", "answers")
PAYLOAD = ("arguments", "parameters")


@dataclass
class Conversion:
    """What became of the records: rows, the number of actions left out by reason, and the records that are bad."""

    rows: list[dict] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad_records: list[str] = field(default_factory=list)
    system_messages: int = 0
    """Dialogues with a system message of their own."""


def main(config: Config, options: Prepare, stream: TextIO) -> None:
    """Convert options.input, records of options.source, to options.output, and write the counts to `stream`.

    data.answer_format "toolrl" writes rows in ToolRL's schema, the others messages and a column `tools`.
    Raises ConfigError for an unknown kind of output, DataError when a file cannot be read or written, when parquet has
    changed its calls or tools, or when no record is usable.
    """
    writer = _writer(options.output)
    records = read_records(options.input)
    _refuse_padded(options.input)
    done = convert(records, options.source, config.data.answer_format)
    lines = _report(done, config.data.answer_format)
    if not done.rows:
        raise DataError(
            "\n".join([f"{options.input}: none of {len(records)} {options.source} records is usable", *lines])
        )
    with replacing(options.output) as path:
        writer(done.rows, path)
    rows, read = counted(len(done.rows), "row"), counted(len(records), f"{options.source} record")
    title = f"{options.output}: {rows} from {read} in {options.input}"
    stream.write("\n".join([title, *lines]) + "\n")


def convert(records: list[tuple[str, object]], source: str, answer_format: AnswerFormat) -> Conversion:
    """Rows of every action that can be learnt from.

    records: as `read_records` gives them. source: a key of SOURCES. answer_format: as data.answer_format.
    """
    done = Conversion()
    for number, (where, record) in enumerate(records):
        try:
            dialogue = SOURCES[source](as_object(record))
        except BadRow as fault:
            done.bad_records.append(f"{where}: {fault}")
            continue
        done.system_messages += bool(dialogue.system)
        for step in steps(dialogue):
            reason = unusable(step)
            if not reason:
                row = _row(step, answer_format, len(done.rows), f"{source}:{dialogue.id or number}:{step.number}")
                reason = _refusal(row)
            if reason:
                done.dropped[reason] += 1
            else:
                done.rows.append(row)
    return done


def _row(step: Step, answer_format: AnswerFormat, index: int, source: str) -> dict:
    if answer_format == "toolrl":
        return rlla_row(step, index, source)
    return native_row(step, answer_format, index, source)


def _refusal(row: dict) -> str:
    """Why training would refuse the row, or its own truth would not score in full; "" when neither."""
    try:
        read_messages(row)
        truth = text(row["reward_model"], "ground_truth")
        reason = score(truth.encode(), parse_ground_truth(truth), progress=0.0).reason
    except ValueError as error:
        return str(error)
    return "" if reason == "ok" else f"its own truth does not score in full: {reason}"


def _refuse_padded(path: Path) -> None:
    """Raise DataError for a parquet file that holds arguments or parameters as objects.

    A struct has the same keys in every row: those a row lacks come back as null and would be learnt.
    """
    if path.suffix != ".parquet":
        return
    schema = pq.read_schema(path)
    found = (_free_struct(schema.field(name).type, name) for name in PAYLOAD_COLUMNS if name in schema.names)
    column = next(filter(None, found), "")
    if column:
        raise DataError(
            f"{path}: column {column} is a struct, in which parquet gives every row the keys of all others as null\n"
            "  Save it as JSONL, or keep calls and tools as JSON strings"
        )


def _free_struct(kind: pa.DataType, where: str) -> str:
    """The first struct in PAYLOAD within a column of this type, "" when there is none. where: the column's name."""
    if hasattr(kind, "value_type"):
        return _free_struct(kind.value_type, f"{where}[]")
    if not pa.types.is_struct(kind):
        return ""
    if where.rstrip("[]").rpartition(".")[2] in PAYLOAD:
        return where
    return next(filter(None, (_free_struct(each.type, f"{where}.{each.name}") for each in kind)), "")


def _report(done: Conversion, answer_format: AnswerFormat) -> list[str]:
    lines = []
    if done.dropped:
        lines.append(f"{counted(done.dropped.total(), 'action')} left out:")
        lines += first_faults([f"{count} x {reason}" for reason, count in done.dropped.most_common()])
    if done.bad_records:
        lines.append(f"{counted(len(done.bad_records), 'record')} cannot be read (rows count from 0, lines from 1):")
        lines += first_faults(done.bad_records)
    if done.system_messages and answer_format == "toolrl":
        lines.append(f"{done.system_messages} records have a system message, which ToolRL's instruction replaces")
    return lines


def _writer(output: Path) -> Callable[[list[dict], Path], None]:
    writers = {".parquet": _write_parquet, ".jsonl": _write_jsonl}
    if output.suffix not in writers:
        raise ConfigError(f"--output {output} ends in {output.suffix!r}; rows are written to {', '.join(writers)}")
    return writers[output.suffix]


def _write_parquet(rows: list[dict], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def _write_jsonl(rows: list[dict], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
