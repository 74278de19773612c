"""The one way a rule between keys fails: the key, its value, the rule, where it was set, and the fix."""

from typing import Any, NoReturn

from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    section, _, name = key.partition(".")
    holder = getattr(config, section)
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


def refuse(config: Config, key: str, rule: str, fix: str) -> NoReturn:
    """Raises ConfigError: "key=value rule   (where it was set)" and the fix on a line of its own."""
    value = str(redact(value_of(config, key), key))
    shown = value.lower() if value in ("True", "False") else value
    raise ConfigError(f"{key}={shown} {rule}   ({config.where(key)})\n  {fix}")
