"""Sampled answers as bytes."""

from collections.abc import Sequence

from rest_megatron.grammar import opens_think
from rest_megatron.rollout.engine import Sample
from rest_megatron.tokens import decode

# A template that opens the thought ends in "<think>" and white space: a few tokens in any vocabulary.
_LAST_TOKENS = 16


def answer_bytes(sample: Sample, token_table: Sequence[bytes]) -> bytes:
    """The answer's text as bytes, without its stop token."""
    ids = sample.token_ids[:-1] if sample.finish_reason == "stop" else sample.token_ids
    return decode(ids, token_table)


def answer_pieces(sample: Sample, token_table: Sequence[bytes]) -> list[bytes]:
    """The bytes of each sampled token, the stop token included."""
    return [token_table[token] for token in sample.token_ids]


def think_open(prompt_ids: Sequence[int], token_table: Sequence[bytes]) -> bool:
    """Whether the prompt ends inside an opened thought, as the templates of some thinking models do."""
    return opens_think(decode(prompt_ids[-_LAST_TOKENS:], token_table))
