"""Calls that an assistant's text holds in tags, as Qwen and Hermes write them: a JSON object in each <tool_call>."""

from rest_megatron.data.convert.dialogue import Call
from rest_megatron.data.convert.fields import read_calls
from rest_megatron.data.rows import BadRow
from rest_megatron.grammar import HERMES, TOOL_CALL, Kind, Section, split

MARK = TOOL_CALL.open.decode()


def split_calls(content: str) -> tuple[tuple[Call, ...], str]:
    """(calls, the text around them). Where any of the calls cannot be read: none, and the text as it is."""
    if MARK not in content:
        return (), content
    text = content.encode("utf-8", "surrogatepass")
    sections = split(text, HERMES)
    blocks = [section for section in sections if section.kind is Kind.TOOL_CALL]
    if not all(_is_whole(block) for block in blocks):
        return (), content
    written = [_decoded(text, call.start, call.end) for block in blocks for call in block.calls]
    try:
        calls = tuple(call for each in written for call in read_calls(each, MARK))
    except BadRow:
        return (), content
    around = [_decoded(text, part.body_start, part.body_end) for part in sections if part.kind is Kind.RESPONSE]
    return (calls, "\n".join(around).strip()) if calls else ((), content)


def _is_whole(block: Section) -> bool:
    return block.closed and bool(block.calls) and not block.junk and all(call.closed for call in block.calls)


def _decoded(text: bytes, start: int, end: int) -> str:
    return text[start:end].decode("utf-8", "surrogatepass")
