"""Which of the four regions each sampled token belongs to (arXiv 2509.21826, section on region weights).

| region     | bytes                                                                                                |
|------------|------------------------------------------------------------------------------------------------------|
| FORMAT     | the tags; in a tool_call everything that is not listed below: braces, quotes, colons, commas, the     |
|            | keys "name", "parameters" and "arguments", what separates calls, white space; white space between     |
|            | sections and tags; the stop token                                                                    |
| TOOL_NAME  | the value of a call's top-level "name", without its quotes                                           |
| PARAMETERS | the whole value of a call's top-level "parameters" or "arguments"                                    |
| COT        | thought and response, and all that fits nowhere: text outside the tags, broken JSON, members of a     |
|            | call with another key                                                                                |

The regions partition the tokens. Bytes are labelled first, then each token takes the label of its first non-space
byte, so a token that straddles a border has one region and a tag in several tokens is FORMAT throughout.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np

from rest_megatron.grammar import TOOLRL, Grammar, Kind, Section, gaps, split


class Region(IntEnum):
    """Labels, and the order of every vector of four region values."""

    FORMAT = 0
    TOOL_NAME = 1
    PARAMETERS = 2
    COT = 3

    @property
    def label(self) -> str:
        """Its name in metrics and files, such as "tool_name"."""
        return self.name.lower()


_ONE = {region: bytes([region]) for region in Region}
_IS_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\r\n\v\f", np.uint8))


def label_regions(
    token_pieces: Sequence[bytes], *, stop_token: bool, grammar: Grammar = TOOLRL, think_open: bool = False
) -> list[int]:
    """One Region per sampled token.

    token_pieces: the bytes of each token, in order; a character may be split between tokens.
    stop_token: the last token is the end-of-turn token: FORMAT, and no part of the text.
    grammar: the one that the answers follow. think_open: the prompt has opened the thought, see `grammar.split`.
    A token of white space only takes the region of its first byte, an empty one that of the byte after it.
    """
    pieces = token_pieces[:-1] if stop_token else token_pieces
    text = b"".join(pieces)
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    ends = np.cumsum(lengths)
    positions = _first_non_space(np.frombuffer(text, np.uint8), ends - lengths, ends)
    labels = label_bytes(text, grammar, think_open=think_open)[positions].tolist()
    return [*labels, int(Region.FORMAT)] if stop_token and token_pieces else labels


def label_bytes(text: bytes, grammar: Grammar = TOOLRL, *, think_open: bool = False) -> np.ndarray:
    """uint8 [len(text) + 1]: the Region of each byte; the extra last one stands for the end of the text."""
    labels = bytearray([Region.COT]) * (len(text) + 1)
    sections = split(text, grammar, think_open=think_open)
    if sections:
        for start, end in gaps(text, sections):
            if not text[start:end].strip():
                _fill(labels, start, end, Region.FORMAT)
    for section in sections:
        _fill(labels, section.start, section.body_start, Region.FORMAT)
        _fill(labels, section.body_end, section.end, Region.FORMAT)
        if section.kind is Kind.TOOL_CALL:
            _label_calls(labels, section)
    labels[-1] = labels[-2:][0]
    return np.frombuffer(labels, np.uint8)


def _label_calls(labels: bytearray, section: Section) -> None:
    """Labels the body of a tool_call in place."""
    _fill(labels, section.body_start, section.body_end, Region.FORMAT)
    for start, end in section.junk:
        _fill(labels, start, end, Region.COT)
    for call in section.calls:
        for start, end in call.names:
            _fill(labels, start, end, Region.TOOL_NAME)
        for start, end in call.parameters:
            _fill(labels, start, end, Region.PARAMETERS)
        for start, end in call.others:
            _fill(labels, start, end, Region.COT)


def _fill(labels: bytearray, start: int, end: int, region: Region) -> None:
    labels[start:end] = _ONE[region] * (end - start)


def _first_non_space(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """For each token `text[start:end]` the position of its first non-space byte, or `start` if it has none."""
    visible = np.append(np.flatnonzero(~_IS_SPACE[text]), len(text))
    first = visible[np.searchsorted(visible, starts)]
    return np.where(first < ends, first, starts)
