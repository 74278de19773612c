"""Every key of the schema as a flat table, and the nearest known name to a wrong one."""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rest_megatron.config.schema import Config

# Sections whose keys are another program's: nothing here knows them.
PASS_THROUGH = ("megatron", "deepspeed", "vllm")


@dataclass(frozen=True)
class Key:
    """One leaf of the schema: dotted name, type, choices (none: any value of the type), default, help and bounds."""

    name: str
    hint: Any
    choices: tuple[str, ...]
    default: Any
    help: str
    ge: float | None
    gt: float | None
    le: float | None
    lt: float | None

    @property
    def bounds(self) -> str:
        """The allowed range in words, such as ">= 0 and < 1"; empty when there is none."""
        limits = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    @property
    def kind(self) -> str:
        """Type and range in words, such as "a number >= 0"."""
        return " ".join([type_name(self.hint), self.bounds]).strip()


def sections() -> dict[str, type]:
    """Section name -> dataclass, in the schema's order."""
    return {
        name: hint for name, hint in get_type_hints(Config).items() if isinstance(hint, type) and is_dataclass(hint)
    }


def keys(section: type = Config, prefix: str = "") -> dict[str, Key]:
    """Dotted name -> Key for every leaf below `section`, in the schema's order."""
    hints = get_type_hints(section)
    table: dict[str, Key] = {}
    for field in fields(section):
        name, hint = prefix + field.name, hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            table |= keys(hint, f"{name}.")
        elif field.metadata:
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            table[name] = Key(name, str if choices else hint, choices, _default(field), **field.metadata)
    return table


def type_name(hint: Any) -> str:
    """A type hint of the schema in words: int -> "a whole number", int | None -> "a whole number or null"."""
    if isinstance(hint, UnionType):
        return " or ".join(type_name(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list of {len(get_args(hint))} numbers"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}
    return names.get(get_origin(hint) or hint, "null")


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate a user most likely meant: the same last part in another section, else the closest spelling."""
    candidates = list(candidates)
    last = name.rpartition(".")[2]
    moved = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last]
    close = moved or difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return close[0] if close else None


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
