"""Every key of the schema as a flat table, and the nearest known name to a wrong one."""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from rest_megatron.config.schema import Config


@dataclass(frozen=True)
class Key:
    """One leaf of the schema: dotted name, type hint, default, help sentence and bounds."""

    name: str
    hint: Any
    default: Any
    help: str
    choices: tuple | None
    ge: float | None
    gt: float | None
    le: float | None
    lt: float | None

    @property
    def bounds(self) -> str:
        """The allowed range in words, such as ">= 0 and < 1"; empty when there is none."""
        limits = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)


def sections() -> dict[str, type]:
    """Section name -> dataclass, in the schema's order."""
    return {name: hint for name, hint in get_type_hints(Config).items() if is_dataclass(hint)}


def keys(section: type = Config, prefix: str = "") -> dict[str, Key]:
    """Dotted name -> Key for every leaf below `section`, in the schema's order."""
    hints = get_type_hints(section)
    table: dict[str, Key] = {}
    for field in fields(section):
        name = prefix + field.name
        if is_dataclass(hints[field.name]):
            table |= keys(hints[field.name], f"{name}.")
        elif field.metadata:
            default = field.default if field.default is not MISSING else field.default_factory()
            table[name] = Key(name, hints[field.name], default, **field.metadata)
    return table


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate a user most likely meant: the same last part in another section, else the closest spelling."""
    candidates = list(candidates)
    last = name.rpartition(".")[2]
    moved = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last]
    close = moved or difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return close[0] if close else None
