"""Functions of the user's own, named in the configuration: found, loaded, and what they raise put in one line."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from rest_megatron.errors import ConfigError

SHOWN = 200  # characters of an exception or a text in a message
_OURS = f"{Path(__file__).parents[1]}{os.sep}"


def load_function(key: str, name: str, where: str, call: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """The function at "package.module:function" or "path/to/file.py:function".

    key, name: the configuration's key and its value; where: where it was set, for messages. call: how the function is
    called, in words; args and kwargs: such a call. Raises ConfigError when it cannot be loaded or called like that.
    """
    source, colon, attribute = name.rpartition(":")
    if not (source and colon and attribute):
        raise ConfigError(
            f"{key}={name} ({where}) names no function; write package.module:function or file.py:function"
        )
    try:
        module = _load_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{key}={name} ({where}) cannot be loaded: {say(error)}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        found = "is missing" if function is None else f"is a {type(function).__name__}, not a function,"
        raise ConfigError(f"{key}={name} ({where}): {attribute} {found} in {source}")
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}={name} ({where}) cannot be called as {call}: {error}") from error
    return function


def say(error: BaseException) -> str:
    """An exception in one printable line, with the last place outside of this package that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    places = [f" at {frame.filename}:{frame.lineno}" for frame in frames if not frame.filename.startswith("<frozen")]
    return f"{shorten(repr(error))}{places[-1] if places else ''}"


def excerpt(text: str) -> str:
    """A response in a message: its beginning and its length."""
    return f"the response {shorten(repr(text))} of {len(text)} characters"


def shorten(text: str) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _load_file(path: Path) -> ModuleType:
    """The module in a file, under a name that no other module has; the same file is loaded once."""
    path = path.resolve()
    name = f"_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
