"""The one way a rule between keys fails: the key, its value, the rule, where it was set, and the fix."""

from typing import Any, NoReturn

from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError

AS_YAML = {"True": "true", "False": "false", "None": "null"}


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    section, _, name = key.partition(".")
    holder = getattr(config, section)
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


def refuse(config: Config, key: str, rule: str, fix: str) -> NoReturn:
    """Raises ConfigError: "key=value rule   (where it was set)", and the fix on a line of its own."""
    value = str(redact(value_of(config, key), key))
    shown = f"{key}={AS_YAML.get(value, value)}" if value else key
    raise ConfigError(f"{shown} {rule}   ({config.where(key)})\n  {fix}")
