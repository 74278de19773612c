"""`heatmap`: where the weight goes in one answer of a rollout dump, or of a file written by `weigh`."""

from itertools import islice
from typing import TextIO

from rest_megatron.commands.catalogue import Heatmap
from rest_megatron.commands.rows import Fault, parse_lines
from rest_megatron.data.rows import BadRow
from rest_megatron.data.tokenizer import load_tokenizer
from rest_megatron.data.tokens import token_bytes
from rest_megatron.errors import DataError
from rest_megatron.observe.heatmap import html_page, terminal_text
from rest_megatron.observe.response import read_response
from rest_megatron.utils.files import replacing


def main(options: Heatmap, stream: TextIO) -> None:
    """Write the answer in row options.row (from 0) to options.output as HTML, or to `stream` as text.

    The text is coloured on a terminal. Raises DataError for a row that does not exist or cannot be shown,
    CheckpointError for a tokenizer that cannot be read, ConfigError for one whose tokens are not bytes.
    """
    row = _row(options)
    tokenizer = load_tokenizer(options.tokenizer, f"--tokenizer {options.tokenizer}")
    try:
        response = read_response(row, token_bytes(tokenizer))
    except BadRow as fault:
        raise DataError(f"--input {options.input} --row {options.row}: {fault}") from fault
    if options.output is None:
        stream.write(_writable(terminal_text(response, colors=stream.isatty()), stream.encoding))
        return
    with replacing(options.output) as path:
        path.write_text(html_page(response, f"{options.input.name}, row {options.row}"), encoding="utf-8")
    stream.write(f"wrote {options.output}\n")


def _writable(text: str, encoding: str | None) -> str:
    """The text with the code of each character that the encoding of a stream lacks; None: it has none and takes all."""
    return text.encode(encoding, errors="backslashreplace").decode(encoding) if encoding else text


def _row(options: Heatmap) -> dict:
    rows = parse_lines(options.input, dict)
    before = sum(1 for _ in islice(rows, options.row))
    row = next(rows, None)
    if row is None:
        raise DataError(f"--input {options.input} has {before} rows, counted from 0; there is no --row {options.row}")
    if isinstance(row, Fault):
        raise DataError(f"--input {options.input} --row {options.row}, {row.message}")
    return row
