"""How preset `reference` compares lists of calls: greedily, with Python's equality, as the published code does.

A call is whatever JSON value stood on its line. Only what the published code looks at is looked at, so what is no call
(no name, parameters that are no object) raises TypeError, KeyError or AttributeError exactly where it fails there.
"""

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rest_megatron.config.method import ReferenceVariant

Pair = tuple[float, int]

# In json's own spelling: strings, to be stepped over, and what may equal a number that is spelled otherwise.
_NUMBER_OR_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"|true|false|-?\d++(?:\.\d++(?:e[+-]\d++)?|e[+-]\d++)|-?\d{17,}+')
_ENCODER = json.JSONEncoder(sort_keys=True, check_circular=False)
_WORDS = {"true": "1", "false": "0"}


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
    """One call's parameters. order: the list of names, as a number. names, members: bits of the names, and of the
    names with their values.
    """

    size: int
    order: int
    names: int
    members: int


class _Reader:
    """Values as numbers, equal where Python's == says so, and parameters as bits of these.

    Each call is read once, so that comparing all pairs of large or deep calls stays cheap.
    """

    def __init__(self) -> None:
        self._number: dict[Hashable, int] = {}
        self._values: dict[Hashable, int] = {}
        self._containers: dict[int, int] = {}
        self._read: dict[int, _Parameters] = {}

    def read(self, parameters: dict[str, Any]) -> _Parameters:
        """Raises AttributeError for what is no dict."""
        if id(parameters) not in self._read:
            # NaN is left out: it equals nothing. Inside a list or an object it is one object of json's, and equal.
            members = [(k, self.number(v)) for k, v in parameters.items() if isinstance(v, (list, dict)) or v == v]
            self._read[id(parameters)] = _Parameters(
                size=len(parameters),
                order=self._of(tuple(parameters)),
                names=self._bits(parameters),
                members=self._bits(members),
            )
        return self._read[id(parameters)]

    def number(self, value: Any) -> int:
        """The number of a JSON value. True, 1 and 1.0 are one key of a dict, as they are equal here."""
        if not isinstance(value, (list, dict)):
            return self._values.setdefault(value, len(self._values))
        if id(value) not in self._containers:
            self._containers[id(value)] = self._values.setdefault(_key(value), len(self._values))
        return self._containers[id(value)]

    def _bits(self, items: Iterable[Hashable]) -> int:
        return sum(1 << self._of(item) for item in items)

    def _of(self, item: Hashable) -> int:
        return self._number.setdefault(item, len(self._number))


def _key(value: Any) -> Hashable:
    """What two lists or objects share exactly when they are equal in Python."""
    try:
        key = frozenset(value.items()) if isinstance(value, dict) else tuple(value)
        hash(key)
    except TypeError:  # it holds lists or objects, however deep
        return (str, _same_text(value))
    return key


def _same_text(value: Any) -> str:
    """JSON that is the same for two lists or objects exactly when they are equal in Python."""
    return _NUMBER_OR_STRING.sub(_same_token, _ENCODER.encode(value))


def _same_token(match: re.Match[str]) -> str:
    """One spelling for equal numbers: a whole one below 1e16 as an integer, beyond as a float where that is exact."""
    token = match[0]
    if token[0] == '"':
        return token
    if token in _WORDS:
        return _WORDS[token]
    if token.lstrip("-").isdigit():
        with suppress(OverflowError):  # no float is as large
            return repr(float(int(token))) if int(token) == float(int(token)) else token
        return token
    number = float(token)
    return str(int(number)) if abs(number) < 1e16 and number.is_integer() else token


def match_calls(wanted: list[Any], made: list[Any], variant: ReferenceVariant) -> Match:
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
                    pair = float(reader.number(call) == reader.number(target)), 0
                else:
                    pair = _agreement(reader.read(parameters), reader.read(call["parameters"]), variant)
                if sum(pair) > sum(best):
                    best, best_index = pair, index
        if best_index is not None:
            used.add(best_index)
            pairs.append(best)
    return Match(names, pairs, num_values)


def _name_similarity(wanted: list[Any], made: list[Any], variant: ReferenceVariant) -> float:
    if wanted == made or variant == "refined":
        return float(wanted == made)
    shared = (Counter(wanted) & Counter(made)).total()
    return shared / (len(wanted) + len(made) - shared)


def _agreement(target: _Parameters, call: _Parameters, variant: ReferenceVariant) -> Pair:
    equal = (target.members & call.members).bit_count()
    if variant == "refined":
        return float(target.order == call.order), equal
    shared = (target.names & call.names).bit_count()
    union = target.size + call.size - shared
    return (shared / union if union else 1.0), equal
