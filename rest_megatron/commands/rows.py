"""Files of one JSON object per line: read, each row by itself, and written in the same order.

A row that cannot be used does not stop the others: it becomes a `Fault`, is reported once with its line number and
stands in the output as {"error": ...}. Lines count from 1; blank ones are skipped.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from rest_megatron.data.replace import replacing
from rest_megatron.data.rows import BadRow, describe
from rest_megatron.errors import DataError
from rest_megatron.files import FileArguments

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used."""

    message: str
    """ "line N: " and the reason."""


def process(files: FileArguments, stream: TextIO, convert: Callable[[dict], dict]) -> None:
    """Write `convert(row)` of every row of files.input to files.output; see `read_rows` and `write_rows`."""
    write_rows(files.output, read_rows(files.input, convert), stream)


def read_rows(path: Path, parse: Callable[[dict], Parsed]) -> Iterator[Parsed | Fault]:
    """`parse(row)` of every row in file order, a Fault where it raises BadRow or the line is no JSON object.

    Raises DataError when the file cannot be read or holds no rows.
    """
    empty = True
    for number, line in _lines(path):
        if line.strip():
            empty = False
            yield _parse_line(number, line, parse)
    if empty:
        raise DataError(f"input={path} holds no rows; at least one JSON object on a line is needed")


def write_rows(path: Path, rows: Iterable[dict | Fault], stream: TextIO) -> None:
    """Write `rows` to `path` and what happened to `stream`; `path` appears, or changes, only once it is complete.

    Raises DataError when it cannot be written.
    """
    written = faults = 0
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        for row in rows:
            written += 1
            if isinstance(row, Fault):
                faults += 1
                stream.write(f"{row.message}\n")
                row = {"error": row.message}
            file.write(json.dumps(row) + "\n")
    stream.write(f"{path}: {written} rows, {faults} of them could not be used\n")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise DataError(f"input={path} cannot be read: {error.strerror}") from error


def _parse_line(number: int, line: bytes, parse: Callable[[dict], Parsed]) -> Parsed | Fault:
    try:
        return parse(_read_object(line))
    except BadRow as fault:
        return Fault(f"line {number}: {fault}")


def _read_object(line: bytes) -> dict:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise BadRow(f"is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadRow(f"is {describe(row)}, must be an object")
    return row
