"""The value of an option from its text, by the option's type. Each reader raises ArgumentTypeError with the rule."""

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rest_megatron.commands.command import Declared
from rest_megatron.config.keys import nearest

MAX_DIGITS = 12
SHOWN = 80


def reader(declared: Declared) -> Callable[[str], object]:
    """How the text of this option's value is read."""
    if declared.option.choices:
        return partial(_choice, declared.option.choices)
    if declared.kind is int:
        return partial(_whole, declared.option.minimum)
    return {Path: _path, float: _share}[declared.kind]


def _choice(known: Sequence[str], text: str) -> str:
    if text not in known:
        guess = nearest(text, known)
        raise ArgumentTypeError(
            f"{_show(text)} is not one of {', '.join(known)}{f'; did you mean {guess}?' if guess else ''}"
        )
    return text


def _whole(minimum: int, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else -1
    if number < minimum:
        raise ArgumentTypeError(f"{_show(text)} is not a whole number, {minimum} or more")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ArgumentTypeError(f"{_show(text)} is not a number from 0 to 1")
    return number


def _path(text: str) -> Path:
    if not text:
        raise ArgumentTypeError("is empty; name a file or directory")
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        pass  # What is to be written is not there yet; who reads says that it is not.
    except OSError as error:
        raise ArgumentTypeError(f"{_show(text)} cannot be used: {error.strerror}") from error
    return Path(text)


def _show(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
