"""Secrets out of everything that is printed, saved or uploaded."""

import re
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
# Under these even a number is a secret; `max_new_tokens: 1024` is none.
_ALWAYS = re.compile(r"secret|password", re.IGNORECASE)
# Fields of Megatron that only sound like secrets.
_HARMLESS = re.compile(r"moe_token_(dispatcher_type|drop_policy)|tokenizer\w*")
_USER_INFO = re.compile(r"(\w+:/{1,2})[^/\s]+@")


def redact(value: Any, name: str = "") -> Any:
    """A copy of `value` with everything secret replaced by ***.

    Secret is text under a name with key, token, secret or password in it, also further up; a number under secret or
    password; and the user part of a URL. `name` is the dotted name of `value` itself.
    """
    if isinstance(value, dict):
        return {key: redact(child, f"{name}.{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(child, name) for child in value]
    if isinstance(value, str):
        return HIDDEN if value and _matches(_SECRET, name) else _USER_INFO.sub(rf"\1{HIDDEN}@", value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return HIDDEN if is_number and _matches(_ALWAYS, name) else value


def redact_override(name: str, value: str) -> str:
    """`name=value` as it may be shown; a mapping or list that mentions a secret is hidden whole."""
    if value.lstrip().startswith(("{", "[")):
        return f"{name}={HIDDEN if _SECRET.search(name + value) else redact(value)}"
    number = re.fullmatch(r"[-+.\deE]+", value) and not _matches(_ALWAYS, name)
    return f"{name}={value if number else redact(value, name)}"


def _matches(pattern: re.Pattern, name: str) -> bool:
    return any(pattern.search(part) and not _HARMLESS.fullmatch(part) for part in name.split("."))
