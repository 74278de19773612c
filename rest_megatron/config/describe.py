"""The configuration as text: help for every key, and a resolved configuration as YAML."""

import textwrap
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from rest_megatron.config.keys import PASS_THROUGH, Key, keys, nearest, sections
from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config
from rest_megatron.config.source import FLOAT
from rest_megatron.errors import ConfigError

WIDTH = 116


def describe(section: str = "") -> str:
    """Help: every key with its type, default and sentence, or those of one section.

    Raises ConfigError for a section that does not exist.
    """
    names = [*sections(), *PASS_THROUGH]
    if section and section not in names:
        guess = nearest(section, names)
        hint = f"did you mean {guess}? " if guess else ""
        raise ConfigError(f"--help {section}: no such section or command; {hint}sections: {', '.join(names)}")
    table = keys()
    blocks = []
    for name in [section] if section else names:
        mine = [key for key in table.values() if key.name.partition(".")[0] == name]
        title = f"{name}: {sections()[name].__doc__}\n" if name in sections() else ""
        blocks.append(title + "".join(_describe_key(key) for key in mine))
    return "\n".join(blocks)


def _describe_key(key: Key) -> str:
    kind = " | ".join(key.choices) or key.kind
    sentence = textwrap.fill(key.help, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {key.name}  ({kind}; default {default_text(key)})\n{sentence}\n"


def default_text(key: Key) -> str:
    """A key's default as it would be written in YAML."""
    return yaml.dump(_plain(key.default), Dumper=_Dumper, default_flow_style=True).partition("\n")[0]


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested plain values, in the schema's order, without the places they come from.

    Not redacted.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config) if field.name != "sources"}


def dump(config: Config) -> str:
    """The resolved configuration as YAML, secrets replaced by ***. `load` reads it back to the same values."""
    return yaml.dump(redact(to_dict(config)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(child) for name, child in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which looks like a number in YAML 1.2 ("1e-6") as well as in 1.1 ("off")."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out in full."""
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
