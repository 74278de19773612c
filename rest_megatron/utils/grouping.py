"""Sequences cut into consecutive groups of limited size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def groups_within(limit: int, items: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Cut `items` into consecutive groups that take at most `limit` together, or of one item that alone takes more.

    Each group holds as many items as fit. size_of: what an item takes, in the unit of `limit`.
    """
    group: list[T] = []
    room = limit
    for item in items:
        size = size_of(item)
        if group and size > room:
            yield group
            group, room = [], limit
        group.append(item)
        room -= size
    if group:
        yield group
