"""Files of one JSON object per line: read, each row by itself, and written in the same order.

A row that cannot be used does not stop the others: it becomes a `Fault`, is reported once with its line number and
stands in the output as {"error": ...}; where no row can be used there is none. Lines count from 1; blank ones are
skipped.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from rest_megatron.data.rows import BadRow, as_object, describe, json_lines
from rest_megatron.errors import DataError
from rest_megatron.grammar import Grammar
from rest_megatron.utils.files import replacing
from rest_megatron.utils.text import counted

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used."""

    message: str
    """ "line N: " and the reason."""


def process(source: Path, output: Path, stream: TextIO, convert: Callable[[dict], dict]) -> None:
    """Write `convert(row)` of every row of `source` to `output`; see `parse_lines` and `write_rows`."""
    write_rows(source, output, parse_lines(source, convert), stream)


def parse_lines(path: Path, parse: Callable[[dict], Parsed]) -> Iterator[Parsed | Fault]:
    """`parse(row)` of every row in file order, a Fault where it raises BadRow or the line is no JSON object.

    Raises DataError when the file cannot be read or holds no rows.
    """
    empty = True
    for number, row in _lines(path):
        empty = False
        try:
            yield parse(as_object(row))
        except BadRow as fault:
            yield Fault(f"line {number}: {fault}")
    if empty:
        raise DataError(f"--input {path} holds no rows; at least one JSON object on a line is needed")


def write_rows(source: Path, path: Path, rows: Iterable[dict | Fault], stream: TextIO) -> None:
    """Write `rows`, of `source`, to `path` and what happened to `stream`.

    `path` appears, or changes, only once it is complete. Raises DataError when it cannot be written, or when every row
    is a Fault.
    """
    written = faults = 0
    first = ""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        for row in rows:
            written += 1
            if isinstance(row, Fault):
                faults += 1
                first = first or row.message
                stream.write(f"{row.message}\n")
                row = {"error": row.message}
            file.write(json.dumps(row) + "\n")
        if faults == written:
            raise DataError(
                f"--input {source}: none of its {counted(written, 'row')} can be used; the first, {first}. Give it the "
                f"rows that the command's --help names. {path} was not written"
            )
    unusable = f", {faults} of them with an error in place of a result" if faults else ""
    stream.write(f"{path}: {counted(written, 'row')}{unusable}\n")


def read_think_open(row: dict, grammar: Grammar) -> bool:
    """Whether the prompt has already opened the thought: the optional field `think_open`.

    Raises BadRow when it is no bool, or true where answers of this grammar have no thought.
    """
    think_open = row.get("think_open")
    if think_open is None:
        return False
    if not isinstance(think_open, bool):
        raise BadRow(f"field 'think_open' is {describe(think_open)}, must be a bool")
    if think_open and grammar.think is None:
        raise BadRow("field 'think_open' is true, but answers in this data.answer_format have no thought")
    return think_open


def _lines(path: Path) -> Iterator[tuple[int, object]]:
    try:
        yield from json_lines(path)
    except OSError as error:
        raise DataError(f"--input {path} cannot be read: {error.strerror}") from error
