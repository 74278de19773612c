"""A field of the configuration: its help text and its bounds travel with it."""

from copy import copy
from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def key(
    default: T,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> T:
    """A dataclass field that carries its help text and its bounds; its type hint says the rest, choices included."""
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
