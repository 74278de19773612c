"""A user's own reward function, named in the configuration and called in place of a preset.

    def my_reward(response: str, ground_truth: str, *, progress: float, step: int) -> float | dict: ...

A dict holds the reward under "score"; other numbers in it become parts, and a string under "reason" the reason. What
the function gets wrong stops the run with a DataError: a bug must not turn into a reward.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rest_megatron.errors import ConfigError, DataError
from rest_megatron.reward.score import Score

CALL = "function(response: str, ground_truth: str, *, progress: float, step: int) -> float | dict"
RESERVED = {"mean", "correctness", "judge", "judged", "overlong"}
SHOWN = 200  # characters of an exception or a response in a message


def load_function(name: str, where: str) -> Callable[..., Any]:
    """The function at "package.module:function" or "path/to/file.py:function".

    where: where the name was set, for messages. Raises ConfigError when it cannot be loaded or cannot be called as
    the module's docstring says.
    """
    source, colon, attribute = name.rpartition(":")
    if not (source and colon and attribute):
        raise ConfigError(
            f"reward.function={name} ({where}) names no function; write package.module:function or file.py:function"
        )
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"reward.function={name} ({where}) cannot be loaded: {_say(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "is missing" if function is None else f"is a {type(function).__name__}, not a function,"
        raise ConfigError(f"reward.function={name} ({where}): {attribute} {found} in {source}")
    try:
        inspect.signature(function).bind("", "", progress=0.0, step=0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reward.function={name} ({where}) cannot be called as {CALL}: {error}") from error
    return function


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
        except Exception as error:
            raise DataError(f"{self.name} raised {_say(error)}, on {_excerpt(text)}") from error
        try:
            return _read_result(result)
        except ValueError as error:
            raise DataError(f"{self.name} returned {error}, on {_excerpt(text)}") from error


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
        raise ValueError(f"{where}{number}, which is no finite number")
    return number


def _load_file(path: Path) -> ModuleType:
    """The module in a file, under a name that no other module has; the same file is loaded once."""
    path = path.resolve()
    name = f"_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _say(error: BaseException) -> str:
    """An exception in one printable line, with the place in the user's code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    places = [f" at {frame.filename}:{frame.lineno}" for frame in frames if not frame.filename.startswith("<frozen")]
    return f"{_shorten(repr(error))}{places[-1] if places else ''}"


def _excerpt(text: str) -> str:
    return f"the response {_shorten(repr(text))} of {len(text)} characters"


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
