"""Rows that are too long: refused, or dropped and counted."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rest_megatron.config.schema import Overlong
from rest_megatron.data.rows import BadRow
from rest_megatron.errors import DataError

Row = TypeVar("Row")
logger = logging.getLogger(__name__)


def fits(what: str, token_ids: Sequence[int], limit: int, key: str, overlong: Overlong) -> bool:
    """Whether there are at most `limit` tokens. If not: False when `overlong` is "drop", BadRow when "error".

    what: "prompt" or "response", for the message. key: the configuration key that holds the limit.
    """
    if len(token_ids) <= limit:
        return True
    if overlong == "drop":
        return False
    raise BadRow(
        f"the {what} has {len(token_ids)} tokens, {key}={limit} allows no more; raise it or set data.overlong=drop"
    )


def without_dropped(rows: list[Row | None], path: str | Path, limits: str) -> list[Row]:
    """Leave out the dropped rows (None) and log their number; DataError when none is left.

    limits: the rule that dropped them, for the message.
    """
    kept = [row for row in rows if row is not None]
    if not kept:
        raise DataError(f"{path}: all {len(rows)} rows are longer than {limits}; raise the limit")
    if len(kept) < len(rows):
        logger.warning("%s: dropped %d of %d rows longer than %s", path, len(rows) - len(kept), len(rows), limits)
    return kept
