"""A user's own reward function, named in the configuration and called in place of a preset.

    def my_reward(response: str, ground_truth: str, *, progress: float, step: int) -> float | dict: ...

A dict holds the reward under "score"; other numbers in it become parts, and a string under "reason" the reason. What
the function gets wrong stops the run with a DataError: a bug must not turn into a reward.
"""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rest_megatron.errors import DataError
from rest_megatron.types import Score
from rest_megatron.utils.user_code import excerpt, load_function, say

CALL = "function(response: str, ground_truth: str, *, progress: float, step: int) -> float | dict"
RESERVED = {"mean", "correctness", "judge", "judged", "overlong"}


def load_reward(name: str, where: str) -> Callable[..., Any]:
    """The function that reward.function names, see `load_function`; where: where it was set. Raises ConfigError."""
    return load_function("reward.function", name, where, CALL, "", "", progress=0.0, step=0)


@dataclass(frozen=True)
class FunctionReward:
    """A reward by a user's function. name: how messages call it."""

    function: Callable[..., Any]
    name: str

    def read(self, ground_truth: str) -> str:
        """The ground truth as it is. Raises ValueError when it is blank."""
        if not ground_truth.strip():
            raise ValueError("ground truth is blank")
        return ground_truth

    def score(self, response: bytes, truth: str, *, progress: float, step: int, think_open: bool = False) -> Score:
        """What the function makes of the answer; all of it counts as correctness, and parts are what it returned.

        think_open changes nothing: the function gets the answer as it was sampled, with U+FFFD for what is no UTF-8.
        Raises DataError when the function raises or returns what is no reward.
        """
        text = response.decode("utf-8", "replace")
        try:
            result = self.function(text, truth, progress=progress, step=step)
        except (Exception, SystemExit) as error:
            raise DataError(f"{self.name} raised {say(error)}, on {excerpt(text)}") from error
        try:
            return _read_result(result)
        except ValueError as error:
            raise DataError(f"{self.name} returned {error}, on {excerpt(text)}") from error


def _read_result(result: object) -> Score:
    """Raises ValueError, which says what is wrong with the result."""
    if not isinstance(result, dict):
        total = _number("", result)
        return Score(total, 0.0, total, {}, "ok")
    if "score" not in result:
        raise ValueError('a dict without "score"')
    reason = result.get("reason", "ok")
    if not isinstance(reason, str):
        raise ValueError(f"a reason that is {type(reason).__name__}, not a string")
    taken = sorted(RESERVED & result.keys())
    if taken:
        raise ValueError(f"a part called {taken[0]!r}, the name of a metric of ours")
    parts = {str(key): _number(f"{key!r}: ", value) for key, value in result.items() if key != "reason"}
    total = parts.pop("score")
    return Score(total, 0.0, total, parts, reason)


def _number(where: str, value: object) -> float:
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{where}{type(value).__name__} where a number is needed")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where}{number}, which is not a finite number")
    return number
