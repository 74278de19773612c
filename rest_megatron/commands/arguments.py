"""What the commands over files are told, beside the configuration: bare `key=value` words."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError

SOURCES = ("toolace", "xlam", "hammer", "sharegpt", "openai", "typed")
# Command: its words, in the order of its usage line. Those in brackets there are OPTIONAL.
FILE_COMMANDS: dict[str, tuple[str, ...]] = {
    "score": ("input", "output", "step", "progress"),
    "weigh": ("input", "output", "tokenizer", "step", "progress"),
    "heatmap": ("input", "tokenizer", "row", "output"),
    "prepare": ("input", "output", "source"),
    "convert": ("input", "output", "format", "model", "dtype", "vocab_multiple", "trust_pickle"),
    "inspect": ("input", "trust_pickle"),
    "verify": ("input", "model", "trust_pickle"),
    "diff": ("input", "against", "model", "trust_pickle"),
}
OPTIONAL = {
    "score": ("step", "progress"),
    "weigh": ("step", "progress"),
    "heatmap": ("row", "output"),
    "prepare": (),
    "convert": ("format", "model", "dtype", "vocab_multiple", "trust_pickle"),
    "inspect": ("trust_pickle",),
    "verify": ("model", "trust_pickle"),
    "diff": ("model", "trust_pickle"),
}


@dataclass(frozen=True)
class FileArguments:
    """The words of one command; what a command does not take keeps its default.

    step (counted from 1, as in metrics.jsonl) and progress say the same, progress = step / train.steps, at most 1;
    whichever is given sets the other. model: where config.json and the tokenizer are; format and dtype are
    those of the output, "" for the command's choice; vocab_multiple pads the vocabulary of a Megatron-core checkpoint.
    """

    input: Path
    output: Path | None = None
    tokenizer: Path | None = None
    step: int = 0
    progress: float = 0.0
    source: str = ""
    row: int = 0
    against: Path | None = None
    model: Path | None = None
    format: str = ""
    dtype: str = ""
    vocab_multiple: int = 1
    trust_pickle: bool = False


def read_file_arguments(command: str, words: Sequence[str], config: Config) -> FileArguments:
    """The arguments of `command` from its words. Raises ConfigError for a missing, repeated or ill-formed one."""
    given: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not value or name in given:
            raise ConfigError(f"{command}: {name}= {'is given twice' if name in given else 'has no value'}")
        given[name] = value
    missing = [name for name in FILE_COMMANDS[command] if name not in given and name not in OPTIONAL[command]]
    if missing:
        raise ConfigError(
            f"{command} needs {' '.join(f'{name}=...' for name in missing)}\n"
            f"  It takes {', '.join(FILE_COMMANDS[command])}, and section.key=value for the configuration"
        )
    values: dict[str, Any] = {name: _READERS[name](command, value) for name, value in given.items()}
    if {"step", "progress"} <= values.keys():
        raise ConfigError(f"{command}: step= and progress= say the same; give one")
    steps = config.train.steps
    if "step" in values:
        values["progress"] = min(1.0, values["step"] / steps)
    elif "progress" in values:
        values["step"] = round(values["progress"] * steps)
    return FileArguments(**values)


def _path(command: str, value: str) -> Path:
    try:
        os.stat(value)
    except (FileNotFoundError, NotADirectoryError):
        pass  # What is to be written is not there yet; who reads says that it is not.
    except OSError as error:
        raise ConfigError(f"{command}: {value[:80]!r} cannot be used: {error.strerror}") from error
    return Path(value)


def _whole(command: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 12):
        raise ConfigError(f"{command}: {value!r} is not a whole number, 0 or more")
    return int(value)


def _share(command: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ConfigError(f"{command}: progress={value} must be a number from 0 to 1 (step / train.steps)")
    return number


def _count(command: str, value: str) -> int:
    number = _whole(command, value)
    if number == 0:
        raise ConfigError(f"{command}: a multiple of 0 is nothing; give 1 or more")
    return number


def _one_of(name: str, *known: str) -> Callable[[str, str], str]:
    def read(command: str, value: str) -> str:
        if value not in known:
            raise ConfigError(f"{command}: {name}={value} is not one of {', '.join(known)}")
        return value

    return read


def _switch(command: str, value: str) -> bool:
    return _one_of("trust_pickle", "true", "false")(command, value) == "true"


_READERS: dict[str, Callable[[str, str], Any]] = {
    "input": _path,
    "output": _path,
    "tokenizer": _path,
    "step": _whole,
    "row": _whole,
    "progress": _share,
    "source": _one_of("source", *SOURCES),
    "against": _path,
    "model": _path,
    "format": _one_of("format", "hf", "megatron"),
    "dtype": _one_of("dtype", "bfloat16", "float32"),
    "vocab_multiple": _count,
    "trust_pickle": _switch,
}
