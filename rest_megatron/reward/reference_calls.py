"""How preset `reference` compares lists of calls: greedily, with Python's equality, as the published code does.

A call is whatever JSON value stood on its line. Only what the published code looks at is looked at, so what is no call
(no name, parameters that are no object) raises TypeError, KeyError or AttributeError exactly where it fails there.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

Pair = tuple[float, int]


@dataclass(frozen=True)
class Match:
    """names: similarity of the two lists of names. pairs: (similarity of parameter names, equal values) of each
    matched call. num_values: parameters of all wanted calls; 0 in variant intermediate, where none counts by itself.
    """

    names: float
    pairs: list[Pair]
    num_values: int


@dataclass(frozen=True)
class _Parameters:
    """One call's parameters. order: the list of names, as a number. names, scalars: bits of the names, and of the
    members whose value is neither list nor object. containers: the other members.
    """

    size: int
    order: int
    names: int
    scalars: int
    containers: dict[str, Any]


class _Reader:
    """Parameters as bits, read once for each call, so that comparing all pairs of large calls stays cheap."""

    def __init__(self) -> None:
        self._number: dict[Hashable, int] = {}
        self._read: dict[int, _Parameters] = {}

    def read(self, parameters: dict[str, Any]) -> _Parameters:
        """Raises AttributeError for what is no dict."""
        if id(parameters) not in self._read:
            containers = {key: value for key, value in parameters.items() if isinstance(value, (list, dict))}
            # True, 1 and 1.0 are one key of a dict, as they are equal here; NaN is left out: it equals nothing.
            scalars = [(k, v) for k, v in parameters.items() if k not in containers and v == v]
            self._read[id(parameters)] = _Parameters(
                size=len(parameters),
                order=self._of(tuple(parameters)),
                names=self._bits(parameters),
                scalars=self._bits(scalars),
                containers=containers,
            )
        return self._read[id(parameters)]

    def _bits(self, items: Iterable[Hashable]) -> int:
        return sum(1 << self._of(item) for item in items)

    def _of(self, item: Hashable) -> int:
        return self._number.setdefault(item, len(self._number))


def match_calls(wanted: list[Any], made: list[Any], variant: str) -> Match:
    """Gives each wanted call, in order, the best call of its name that is left; one that earns nothing stays."""
    names = _name_similarity([call["name"] for call in wanted], [call["name"] for call in made], variant)
    pairs, used, num_values, reader = [], set(), 0, _Reader()
    for target in wanted:
        parameters = target["parameters"]
        num_values += 0 if variant == "intermediate" else len(parameters)
        best, best_index = (0.0, 0), None
        for index, call in enumerate(made):
            if index not in used and call["name"] == target["name"]:
                if variant == "intermediate":
                    pair = float(call == target), 0
                else:
                    pair = _agreement(reader.read(parameters), reader.read(call["parameters"]), variant)
                if sum(pair) > sum(best):
                    best, best_index = pair, index
        if best_index is not None:
            used.add(best_index)
            pairs.append(best)
    return Match(names, pairs, num_values)


def _name_similarity(wanted: list[Any], made: list[Any], variant: str) -> float:
    if wanted == made or variant == "refined":
        return float(wanted == made)
    shared = (Counter(wanted) & Counter(made)).total()
    return shared / (len(wanted) + len(made) - shared)


def _agreement(target: _Parameters, call: _Parameters, variant: str) -> Pair:
    equal = (target.scalars & call.scalars).bit_count()
    equal += sum(key in call.containers and call.containers[key] == target.containers[key] for key in target.containers)
    if variant == "refined":
        return float(target.order == call.order), equal
    shared = (target.names & call.names).bit_count()
    union = target.size + call.size - shared
    return (shared / union if union else 1.0), equal
