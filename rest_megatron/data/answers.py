"""Sampled answers as bytes, and the turns that a dialogue's answers have."""

from collections.abc import Sequence
from itertools import groupby

from rest_megatron.data.tokens import decode
from rest_megatron.grammar import opens_think
from rest_megatron.types import Sample

# A template that opens the thought ends in "<think>" and white space: a few tokens in any vocabulary.
_LAST_TOKENS = 16


def answer_bytes(sample: Sample, token_table: Sequence[bytes]) -> bytes:
    """The answer's text as bytes, without its stop token. In a dialogue: everything after the prompt, what tools said
    and the stop tokens of earlier turns included.
    """
    ids = sample.token_ids[:-1] if sample.finish_reason == "stop" else sample.token_ids
    return decode(ids, token_table)


def turns(ids: Sequence[int], mask: Sequence[bool]) -> list[slice]:
    """The runs of sampled ids, a turn of the assistant each.

    mask: whether each id was sampled, or empty when all were. Raises ValueError for another number than that of `ids`.
    """
    if not mask:
        return [slice(0, len(ids))]
    if len(mask) != len(ids):
        raise ValueError(f"a mask of {len(mask)} entries for {len(ids)} ids")
    found, start = [], 0
    for sampled, run in groupby(mask):
        end = start + len(list(run))
        if sampled:
            found.append(slice(start, end))
        start = end
    return found


def after_tool(ids: Sequence[int], mask: Sequence[bool]) -> list[bool]:
    """Of each sampled id: whether its turn follows a tool's result, that is, is not the first. See `turns`."""
    return [number > 0 for number, turn in enumerate(turns(ids, mask)) for _ in range(turn.start, turn.stop)]


def think_open(prompt_ids: Sequence[int], token_table: Sequence[bytes]) -> bool:
    """Whether the prompt ends inside an opened thought, as the templates of some thinking models do."""
    return opens_think(decode(prompt_ids[-_LAST_TOKENS:], token_table))
