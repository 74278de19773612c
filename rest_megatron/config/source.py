"""Settings as they were written: values with the place they come from.

YAML is read with the scalar rules of YAML 1.2, so `1e-6` is a number and `off` is text.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rest_megatron.config.redact import redact_override
from rest_megatron.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A value and where it was written, "run.yaml:14"; the value of a mapping is a dict of name -> Setting."""

    value: Any
    where: str = ""

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        return self.value


def merge(base: Setting, top: Setting) -> Setting:
    """`base` with everything `top` sets; mappings merge key by key, any other value replaces."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    merged = dict(base.value)
    for name, child in top.value.items():
        merged[name] = merge(base.value[name], child) if name in base.value else child
    return Setting(merged, top.where)


def read_yaml(path: Path) -> Setting:
    """The settings of one YAML file; an empty file has none.

    Raises ConfigError for a file that cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    text = _read_text(path, "configuration file")
    setting = _parse(text, lambda line: f"{path}:{line}")
    if setting.value is None:
        return Setting({}, str(path))
    if not isinstance(setting.value, dict):
        raise ConfigError(
            f"the file holds {_kind(setting.value)}, not sections of keys   ({setting.where})\n"
            "  Write sections with their keys below them, such as `optim:` and below it `  lr: 1e-6`"
        )
    return setting


def read_json(path: Path, named_by: str) -> Setting:
    """The settings of one JSON object. Raises ConfigError as `read_yaml` does."""
    text = _read_text(path, f"the JSON named by deepspeed ({named_by})")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}   ({named_by})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {_kind(value)}, not a JSON object   ({named_by})")
    return _place(value, str(path))


def read_override(text: str) -> Setting:
    """The setting of one `section.key=value`; the value is YAML. Raises ConfigError when it is not one."""
    name, equals, value = text.partition("=")
    parts = name.split(".")
    where = f"override: {redact_override(name, value)}"
    if not equals or not all(re.fullmatch(r"[A-Za-z_]\w*", part) for part in parts):
        raise ConfigError(
            f"{text.partition('=')[0]!r} is not an override\n"
            "  Write section.key=value, such as optim.lr=1e-6; a configuration file is given by -c FILE"
        )
    setting = _parse(value, lambda _: where)
    for part in reversed(parts):
        setting = Setting({part: setting}, where)
    return setting


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} does not exist (looked in {Path.cwd()})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path} cannot be read: {error}") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2: no yes/no/on/off, octal, sexagesimal, dates or merge keys."""


_Loader.yaml_implicit_resolvers = {}


FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)

_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:[tT]rue|TRUE|[fF]alse|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    """A whole number as YAML 1.2 reads it: 010 is ten."""
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _parse(text: str, where: Callable[[int], str]) -> Setting:
    """`text` as a tree of settings; `where` turns a line number, from 1, into a place."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _convert(loader, node, where) if node is not None else Setting(None, where(1))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # Only the problem: PyYAML's own text quotes the line, which may hold a secret.
        raise ConfigError(f"not valid YAML: {error.problem}   ({where(mark.line + 1 if mark else 1)})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not valid YAML: {error}   ({where(1)})") from None
    finally:
        if loader is not None:
            loader.dispose()


def _convert(loader: _Loader, node: yaml.Node, where: Callable[[int], str]) -> Setting:
    here = where(node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return Setting([_convert(loader, item, where).plain() for item in node.value], here)
    if not isinstance(node, yaml.MappingNode):
        return Setting(loader.construct_object(node), here)
    table: dict[str, Setting] = {}
    for name_node, value_node in node.value:
        place = where(name_node.start_mark.line + 1)
        if not isinstance(name_node, yaml.ScalarNode):
            raise ConfigError(f"a key must be a name, not {name_node.id}   ({place})")
        name = name_node.value
        if name in table:
            raise ConfigError(f"key {name!r} is set twice   ({table[name].where} and {place})\n  Keep one of them")
        table[name] = Setting(_convert(loader, value_node, where).value, place)
    return Setting(table, here)


def _place(value: Any, where: str) -> Setting:
    if isinstance(value, dict):
        return Setting({name: _place(child, where) for name, child in value.items()}, where)
    return Setting(value, where)


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} is set twice")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "a list", str: "text", dict: "a mapping"}
    return names.get(type(value), "a single value")
