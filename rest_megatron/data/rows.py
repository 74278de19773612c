"""Rows of a .parquet, .jsonl or .json file, parsed one by one; bad rows are reported together."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from rest_megatron.errors import DataError

Parsed = TypeVar("Parsed")
Kind = TypeVar("Kind")
FAULTS_SHOWN = 5
# Exact types of a JSON number (True is none), and the largest that training can hold.
NUMBER = (int, float)
LARGEST_FLOAT32 = 3.4028234663852886e38


class BadRow(ValueError):
    """One row breaks a rule. The message names the field, its value and the rule; `parse_rows` adds file and row."""


def parse_rows(
    path: str | Path,
    columns: tuple[str, ...],
    parse: Callable[[int, dict], Parsed | None],
    optional: tuple[str, ...] = (),
) -> list[Parsed | None]:
    """Return `parse(row number, row)` of every row, in file order; row numbers count from 0.

    columns, optional: the fields `parse` needs and those it uses; parquet files are read no further.
    Raises DataError when the file cannot be read or holds no row, and, naming the first few of them, when `parse`
    raised BadRow or a line is not JSON.
    """
    rows = read_records(path, columns + optional)
    parsed, faults = [], []
    for index, (where, row) in enumerate(rows):
        try:
            parsed.append(parse(index, as_object(row, columns)))
        except BadRow as fault:
            faults.append(f"{where}: {fault}")
    if faults:
        title = f"{path}: {len(faults)} of {len(rows)} rows cannot be used (rows count from 0, lines from 1)"
        raise DataError("\n".join([title, *first_faults(faults)]))
    return parsed


def read_records(path: str | Path, columns: tuple[str, ...] | None = None) -> list[tuple[str, object]]:
    """Return each row with the words that say where it is; a line that is not JSON comes as a BadRow.

    columns: parquet files are read no further; None reads all.
    Raises DataError when the file cannot be read or holds no row.
    """
    path = Path(path)
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json}
    reader = readers.get(path.suffix)
    if reader is None:
        raise DataError(f"{path} ends in {path.suffix!r}; rows are read from {', '.join(readers)}")
    if not path.is_file():
        raise DataError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        rows = reader(path, columns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no rows; at least one is needed")
    return rows


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """(line number from 1, its JSON value or a BadRow) of every line that is not blank.

    Lines end at LF only: U+2028 and the like are text. Raises OSError.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, _parse_line(line)


def _parse_line(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return BadRow(f"is not valid JSON: {error}")


def as_object(row: object, columns: tuple[str, ...] = ()) -> dict:
    """The row of `read_records` or `json_lines`; BadRow when it is one, or no object.

    columns: what it should hold, for the message.
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        fields = f" with the fields {', '.join(columns)}" if columns else ""
        raise BadRow(f"is {describe(row)}, must be an object{fields}")
    return row


def first_faults(faults: Sequence[str]) -> list[str]:
    """The first few of them as indented lines, and how many more there are."""
    lines = [f"  {fault}" for fault in faults[:FAULTS_SHOWN]]
    more = len(faults) - FAULTS_SHOWN
    return [*lines, f"  and {more} more"] if more > 0 else lines


def field(row: Mapping, name: str, kind: type[Kind]) -> Kind:
    """Return `row[name]`; BadRow when it is missing (or null) or not a `kind`."""
    value = row.get(name)
    if value is None:
        raise BadRow(f"field {name!r} is missing")
    if not isinstance(value, kind):
        raise BadRow(f"field {name!r} is {describe(value)}, must be a {kind.__name__}")
    return value


def vector(row: Mapping, name: str, kinds: tuple[type, ...], what: str, length: int | None) -> list:
    """Return the list `row[name]`; BadRow when it is missing, has other than `length` entries or one not of `kinds`.

    what: what the entries must be, for the message. length: the number of the row's ids; None: any.
    """
    values = field(row, name, list)
    # Exact types: True is no token id.
    wrong = [value for value in values if type(value) not in kinds]
    if wrong:
        raise BadRow(f"field {name!r} holds {describe(wrong[0])}, must be a list of {what}")
    if length is not None and len(values) != length:
        raise BadRow(f"field {name!r} has {len(values)} entries for {length} ids, must have one per token")
    return values


def text(row: dict, name: str) -> str:
    """Return the string `row[name]`; BadRow when it is missing, not a string, blank or not valid Unicode."""
    value = field(row, name, str)
    if not value.strip():
        raise BadRow(f"field {name!r} is {describe(value)}, must not be blank")
    fault = lone_surrogate(value)
    if fault:
        raise BadRow(f"field {name!r} has {fault}")
    return value


def lone_surrogate(value: str) -> str:
    """The first character that is no Unicode by itself, and where, in words; "" when there is none."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"the lone surrogate U+{ord(value[error.start]):04X} at character {error.start}"
    return ""


def describe(value: object) -> str:
    """A value for an error message: its type, and its start when it is short to say."""
    shown = repr(value)
    return f"{type(value).__name__} {shown[:60]}{'...' if len(shown) > 60 else ''}"


def _numbered(rows: Iterable[object]) -> list[tuple[str, object]]:
    return [(f"row {index}", row) for index, row in enumerate(rows)]


def _read_parquet(path: Path, columns: tuple[str, ...] | None) -> list[tuple[str, object]]:
    # Only here: it takes a tenth of a second, which a command line that reads no parquet need not wait for.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return _numbered(file.read(columns=columns and list(columns)).to_pylist())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error


def _read_json(path: Path, columns: tuple[str, ...] | None) -> list[tuple[str, object]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}, must be a list of rows")
    return _numbered(rows)


def _read_jsonl(path: Path, columns: tuple[str, ...] | None) -> list[tuple[str, object]]:
    return [(f"row {index} (line {number})", row) for index, (number, row) in enumerate(json_lines(path))]
