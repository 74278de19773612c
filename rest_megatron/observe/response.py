"""One answer of a rollout dump, or of a file written by `weigh`: its tokens with all that is known of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rest_megatron.data.rows import LARGEST_FLOAT32, NUMBER, BadRow, describe, vector
from rest_megatron.observe.regions import REGIONS
from rest_megatron.utils.text import clean

MEASURES = ("entropy", "log_probs", "ratio", "clipped")
FACTS = ("prompt", "finish_reason", "weight_version", "score", "format", "correctness", "reason", "advantage")


@dataclass(frozen=True)
class Response:
    """An answer, token by token; every list has one entry per token."""

    ids: list[int]
    texts: list[str]
    """The token as text that is safe on a terminal, see `visible`; its number where it spells nothing."""
    pieces: list[bytes]
    """The token's own bytes."""
    regions: list[str]
    """Names out of `REGIONS`."""
    weights: list[float]
    measures: dict[str, list[float]]
    """Those of MEASURES that the row has, in that order; nan where one token has none. clipped: 0 or 1."""
    facts: dict[str, str]
    """What the row says of the whole answer, as text."""


def read_response(row: Mapping, token_table: Sequence[bytes]) -> Response:
    """The answer in a row; of a dialogue, the ids that were sampled.

    Needs ids, weights and regions; the rest may be missing. token_table: the bytes of every token id.
    Raises BadRow for a field that is missing or malformed, and when the row's text is not what these ids spell.
    """
    ids = vector(row, "ids", (int,), "ints", None)
    if not ids:
        raise BadRow("field 'ids' holds no tokens")
    pieces = _pieces(row, ids, token_table)
    mask = read_mask(row, len(ids))
    if mask:
        row = _sampled(dict(row) | {"pieces": pieces}, mask)
        ids, pieces = row["ids"], row["pieces"]
    regions = vector(row, "regions", (str,), "strings", len(ids))
    weights = [_float(weight) for weight in vector(row, "weights", NUMBER, "numbers", len(ids))]
    unknown = next((name for name in regions if name not in REGIONS), None)
    if unknown is not None:
        raise BadRow(f"field 'regions' holds {describe(unknown)}, must be of {', '.join(REGIONS)}")
    if not all(0 <= weight <= LARGEST_FLOAT32 for weight in weights):
        raise BadRow("field 'weights' holds a number that is negative or not finite as a float32")
    measures = {name: _measure(row, name, len(ids)) for name in MEASURES if row.get(name) is not None}
    texts = [visible(piece) or f"⟨{i}⟩" for i, piece in zip(ids, pieces, strict=True)]
    return Response(ids, texts, pieces, regions, weights, measures, _facts(row))


def read_mask(row: Mapping, length: int) -> list[bool]:
    """Whether each of the row's ids was sampled; [] when the row does not say, because all were. Raises BadRow."""
    if row.get("response_mask") is None:
        return []
    mask = vector(row, "response_mask", (bool,), "bools", length)
    if not any(mask):
        raise BadRow("field 'response_mask' marks no id as sampled")
    return mask


def _sampled(row: dict, mask: Sequence[bool]) -> dict:
    """The row, of every list with an entry for each id those of the sampled ones."""
    whole = {name: values for name, values in row.items() if isinstance(values, list) and len(values) == len(mask)}
    return row | {name: [v for v, own in zip(values, mask, strict=True) if own] for name, values in whole.items()}


def visible(piece: bytes) -> str:
    """Bytes as text: a line break with a sign before it, what would steer a terminal by its code, and bytes that are
    no UTF-8 by themselves (a character cut in two) in hexadecimal.
    """
    return "".join(_visible(char) for char in piece.decode("utf-8", errors="surrogateescape"))


def _visible(char: str) -> str:
    if char == "\n":
        return "↵\n"
    if clean(char):
        return char
    code = ord(char)
    return f"⟨{code - 0xDC00:02X}⟩" if 0xDC80 <= code <= 0xDCFF else f"⟨U+{code:04X}⟩"


def _pieces(row: Mapping, ids: Sequence[int], token_table: Sequence[bytes]) -> list[bytes]:
    """The bytes of each token; BadRow where they show that the ids are another tokenizer's."""
    advice = "is --tokenizer the one of the model that wrote the row?"
    dumped = isinstance(row.get("text"), str)
    # A model's vocabulary may be padded beyond the tokenizer's; such an id spells nothing, which the text can prove.
    if min(ids) < 0 or (max(ids) >= len(token_table) and not dumped):
        raise BadRow(f"field 'ids' spans {min(ids)} to {max(ids)}, must lie in 0..{len(token_table) - 1}: {advice}")
    pieces = [token_table[i] if i < len(token_table) else b"" for i in ids]
    spelled = pieces[:-1] if row.get("finish_reason") == "stop" else pieces
    if dumped and b"".join(spelled).decode("utf-8", errors="replace") != row["text"]:
        raise BadRow(f"field 'ids' does not spell field 'text': {advice}")
    return pieces


def _measure(row: Mapping, name: str, length: int) -> list[float]:
    kinds, said = ((bool,), "bools") if name == "clipped" else (NUMBER, "numbers")
    values = vector(row, name, (*kinds, type(None)), said, length)
    return [math.nan if value is None else _float(value) for value in values]


def _float(value: float) -> float:
    """JSON has integers that no float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _facts(row: Mapping) -> dict[str, str]:
    parts = row.get("parts")
    known = {name: row[name] for name in FACTS if row.get(name) is not None}
    if isinstance(parts, dict):
        known |= {f"part {name}": value for name, value in parts.items()}
    return {_line(name): f"{value:.4g}" if isinstance(value, float) else _line(value) for name, value in known.items()}


def _line(value: object) -> str:
    """On one line, whatever it is."""
    return " ".join(clean(str(value)).split())
