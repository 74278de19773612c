"""Which bytes of an answer are thought, call and response, for each grammar that answers may follow."""

from rest_megatron.grammar.call import MAX_DEPTH, MAX_ENTRIES, NAME_KEYS, PARAMETER_KEYS, CallSpan, Span
from rest_megatron.grammar.declare import (
    GRAMMARS,
    HERMES,
    LLAMA3,
    RESPONSE,
    THINK,
    TOOL_CALL,
    TOOLRL,
    Grammar,
    Kind,
    Tag,
)
from rest_megatron.grammar.sections import Section, gaps, opens_think, outside, split

__all__ = [
    "GRAMMARS",
    "HERMES",
    "LLAMA3",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "NAME_KEYS",
    "PARAMETER_KEYS",
    "RESPONSE",
    "THINK",
    "TOOLRL",
    "TOOL_CALL",
    "CallSpan",
    "Grammar",
    "Kind",
    "Section",
    "Span",
    "Tag",
    "gaps",
    "opens_think",
    "outside",
    "split",
]
