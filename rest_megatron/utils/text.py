"""Text for people: nothing in it steers a terminal, numbers agree with their nouns, and columns align."""

import math
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""
UNKNOWN = "-"

# Control, format (bidirectional, zero-width), surrogate, private and unassigned characters.
_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn")


def clean(text: str) -> str:
    """`text` without characters that could steer a terminal; line breaks stay."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in _UNSAFE)


def duration(seconds: float) -> str:
    """Seconds as 7s, 3m12s or 5h04m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def counted(number: int, noun: str) -> str:
    """Such as "1 row" or "3 rows"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number(value: float, form: str) -> str:
    """The value in a format such as "{:.3f}"; UNKNOWN where it is not finite."""
    return form.format(value) if math.isfinite(value) else UNKNOWN


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of a width: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (header, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
