"""`heatmap`: where the weight goes in one answer of a rollout dump, or of a file written by `weigh`."""

from itertools import islice
from typing import TextIO

from rest_megatron.commands.arguments import FileArguments
from rest_megatron.commands.rows import Fault, parse_lines
from rest_megatron.config.schema import Config
from rest_megatron.data.rows import BadRow
from rest_megatron.data.tokenizer import load_tokenizer
from rest_megatron.data.tokens import token_bytes
from rest_megatron.errors import DataError
from rest_megatron.observe.heatmap import html_page, terminal_text
from rest_megatron.observe.response import read_response
from rest_megatron.utils.files import replacing


def main(config: Config, files: FileArguments, stream: TextIO) -> None:
    """Write the answer in row files.row (from 0) to files.output as HTML, or to `stream` as text.

    The text is coloured on a terminal. Raises DataError for a row that does not exist or cannot be shown,
    CheckpointError for a tokenizer that cannot be read, ConfigError for one whose tokens are not bytes.
    """
    row = _row(files)
    tokenizer = load_tokenizer(files.tokenizer, f"tokenizer={files.tokenizer}")
    try:
        response = read_response(row, token_bytes(tokenizer))
    except BadRow as fault:
        raise DataError(f"input={files.input} row={files.row}: {fault}") from fault
    if files.output is None:
        stream.write(_writable(terminal_text(response, colors=stream.isatty()), stream.encoding))
        return
    with replacing(files.output) as path:
        path.write_text(html_page(response, f"{files.input.name}, row {files.row}"), encoding="utf-8")
    stream.write(f"wrote {files.output}\n")


def _writable(text: str, encoding: str | None) -> str:
    """The text with the code of each character that the encoding of a stream lacks; None: it has none and takes all."""
    return text.encode(encoding, errors="backslashreplace").decode(encoding) if encoding else text


def _row(files: FileArguments) -> dict:
    rows = parse_lines(files.input, dict)
    before = sum(1 for _ in islice(rows, files.row))
    row = next(rows, None)
    if row is None:
        raise DataError(f"input={files.input} has {before} rows, counted from 0; there is no row={files.row}")
    if isinstance(row, Fault):
        raise DataError(f"input={files.input} row={files.row}, {row.message}")
    return row
