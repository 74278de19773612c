"""Secrets out of everything that is printed, saved or uploaded."""

import re
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
# Fields of Megatron that only sound like secrets.
_HARMLESS = re.compile(r"moe_token_(dispatcher_type|drop_policy)|tokenizer\w*")
_USER_INFO = re.compile(r"(\w+://)[^/\s]+@")


def is_secret(name: str) -> bool:
    """Whether text under this key is to be hidden; a dotted name counts by each of its parts."""
    return any(_SECRET.search(part) and not _HARMLESS.fullmatch(part) for part in name.split("."))


def redact(value: Any, name: str = "") -> Any:
    """A copy of `value` with all text under a secret key, and the user part of every URL, replaced by ***.

    Numbers and switches stay: `max_new_tokens: 1024` is no secret.
    """
    if isinstance(value, dict):
        return {key: redact(child, f"{name}.{key}") for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(child, name) for child in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if value and is_secret(name) else _USER_INFO.sub(rf"\1{HIDDEN}@", value)
