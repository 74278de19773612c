"""From untrusted bytes to calls. Total: any bytes give an Answer, bounded in size before JSON is read.

A JSON value is kept as its canonical text (sorted keys, no spaces), so comparing two values is comparing two strings
and JSON types stay apart: true, 1, 1.0 and "1" differ, {"a": 1, "b": 2} equals {"b": 2, "a": 1}.

Problems an Answer can carry, in the order they are listed in it; those with a grammar's name occur in it alone. (Beyond
256 tool_calls or responses the rest of an answer is text, in any grammar.) In hermes the text outside is the response,
so a stray tag is a tag_in_response there.

| problem              | only in        | meaning                                                                 |
|----------------------|----------------|-------------------------------------------------------------------------|
| too_large            |                | more than 64 KiB; nothing is read                                       |
| no_think             | toolrl         | no <think> before the first action                                      |
| unclosed_think       | toolrl, hermes | <think> without </think>; all that follows is thought                   |
| tag_in_think         | toolrl, hermes | a think tag quoted inside the thought; other tags may be quoted there   |
| text_outside         | toolrl         | text before, between or after the sections, stray tags included         |
| repeated_tool_call   | toolrl, llama3 | more than one tool_call section                                         |
| repeated_response    | toolrl, hermes | more than one response section                                          |
| wrong_order          | toolrl, hermes | a response before (toolrl) or after (hermes) a tool_call                |
| unclosed_tool_call   | toolrl, hermes | no </tool_call>; its calls do not count                                 |
| unclosed_response    | toolrl         | no </response>; it does not count                                       |
| empty_tool_call      |                | a tool_call without a call                                              |
| several_calls        | hermes         | more than one call in a tool_call; all of them count                    |
| empty_response       | toolrl         | a response of white space only; it does not count                       |
| tag_in_response      | toolrl, hermes | a tag of the grammar inside the response                                |
| too_many_calls       |                | more than 64 calls; none counts                                         |
| bad_json             |                | a call that is not JSON, or not UTF-8                                   |
| too_deep             |                | a call nested deeper than 32                                            |
| bad_number           |                | NaN, Infinity, a float beyond range, a number of over 4096 characters   |
| long_key             |                | an object key longer than 1 KiB                                         |
| duplicate_key        |                | the same key twice in one object                                        |
| bad_call             |                | not one string "name" and one object "parameters" (or "arguments")      |
| text_in_tool_call    |                | something besides calls in a tool_call                                  |
| unknown_key          |                | a call with another top-level key; the call counts                      |
| missing_newline      | toolrl         | sections or calls that do not start on a line of their own              |
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise

from rest_megatron.grammar import (
    NAME_KEYS,
    PARAMETER_KEYS,
    TOOLRL,
    CallSpan,
    Grammar,
    Kind,
    Section,
    gaps,
    outside,
    split,
)

MAX_BYTES = 64 * 1024
MAX_CALLS = 64
MAX_NUMBER_LENGTH = 4096
MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class Call:
    """One tool call. parameters: name -> canonical JSON text of the value."""

    name: str
    parameters: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What an answer does.

    calls: one entry per call in closed tool_call sections, None for one that cannot be read.
    tool_call: it tries to call, readable or not. response: it has a closed, non-empty response.
    problems: see the table above; empty when the answer follows the format to the letter.
    """

    calls: tuple[Call | None, ...]
    tool_call: bool
    response: bool
    problems: tuple[str, ...]


class _Rejected(ValueError):
    """A call that cannot be read; its only argument is the problem."""


def parse(text: bytes, grammar: Grammar = TOOLRL, *, think_open: bool = False) -> Answer:
    """Reads an answer; never raises, whatever the bytes.

    think_open: the prompt has opened the thought, see `grammar.split`; ValueError where the grammar has none.
    """
    if len(text) > MAX_BYTES:
        return Answer((), tool_call=False, response=False, problems=("too_large",))
    sections = split(text, grammar, think_open=think_open)
    problems = _layout_problems(text, sections, grammar)
    calls: list[Call | None] = []
    spans = [span for section in sections if section.closed for span in section.calls]
    if len(spans) > MAX_CALLS:
        problems.append("too_many_calls")
        spans = []
    for span in spans:
        try:
            calls.append(_read_call(text, span))
        except _Rejected as error:
            calls.append(None)
            problems.append(error.args[0])
    if any(section.junk for section in sections):
        problems.append("text_in_tool_call")
    if any(span.others for span in spans):
        problems.append("unknown_key")
    if grammar.own_lines and not _on_own_lines(text, sections):
        problems.append("missing_newline")
    return Answer(
        calls=tuple(calls),
        tool_call=any(section.kind is Kind.TOOL_CALL for section in sections),
        response=any(body.strip() for body in _closed_responses(text, sections)),
        problems=tuple(dict.fromkeys(problems)),
    )


def _layout_problems(text: bytes, sections: list[Section], grammar: Grammar) -> list[str]:
    """Problems with tags and their order."""
    thoughts, tool_calls, responses = ([part for part in sections if part.kind is kind] for kind in Kind)
    bodies = _closed_responses(text, sections)
    found = {
        "no_think": grammar.think_required and not thoughts,
        "unclosed_think": any(not section.closed for section in thoughts),
        "tag_in_think": any(tag in _body(text, section) for section in thoughts for tag in grammar.think or ()),
        "text_outside": bool(outside(text, sections)),
        "repeated_tool_call": grammar.one_block and len(tool_calls) > 1,
        "repeated_response": len(responses) > 1,
        "wrong_order": any(grammar.order.index(a.kind) > grammar.order.index(b.kind) for a, b in pairwise(sections)),
        "unclosed_tool_call": any(not section.closed for section in tool_calls),
        "unclosed_response": any(not section.closed for section in responses),
        "empty_tool_call": any(not section.calls for section in tool_calls),
        "several_calls": grammar.one_call and any(len(section.calls) > 1 for section in tool_calls),
        "empty_response": any(not body.strip() for body in bodies),
        "tag_in_response": any(tag in body for body in bodies for tag in grammar.tags),
    }
    return [problem for problem, present in found.items() if present]


def _on_own_lines(text: bytes, sections: list[Section]) -> bool:
    """Whether a line break lies between any two sections, and around and between the calls of a closed tool_call.

    A call must also stay on its line: pretty-printed JSON does not.
    """
    between = [text[a:b] for a, b in gaps(text, sections)[1:-1]]
    for section in sections:
        if section.kind is Kind.TOOL_CALL and section.closed:
            edges = [section.body_start, *(edge for call in section.calls for edge in (call.start, call.end))]
            edges.append(section.body_end)
            between += [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
            if any(b"\n" in text[call.start : call.end] for call in section.calls):
                return False
    return all(b"\n" in gap for gap in between)


def _closed_responses(text: bytes, sections: list[Section]) -> list[bytes]:
    return [_body(text, section) for section in sections if section.kind is Kind.RESPONSE and section.closed]


def _body(text: bytes, section: Section) -> bytes:
    return text[section.body_start : section.body_end]


def _read_call(text: bytes, span: CallSpan) -> Call:
    """The call at `span`. Raises _Rejected."""
    if span.too_deep:
        raise _Rejected("too_deep")
    if not span.closed:
        raise _Rejected("bad_json")
    try:
        call = _DECODER.decode(text[span.start : span.end].decode("utf-8"))
    except _Rejected:
        raise
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise _Rejected("bad_json") from error
    name, parameters = _members(call)
    return Call(name, {key: _ENCODER.encode(value) for key, value in parameters.items()})


def _members(call: dict) -> tuple[str, dict]:
    names = [call[key.decode()] for key in NAME_KEYS if key.decode() in call]
    parameters = [call[key.decode()] for key in PARAMETER_KEYS if key.decode() in call]
    if len(names) == len(parameters) == 1 and isinstance(names[0], str) and isinstance(parameters[0], dict):
        return names[0], parameters[0]
    raise _Rejected("bad_call")


def _object(pairs: list[tuple[str, object]]) -> dict:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _Rejected("duplicate_key")
    if any(len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES for key in members):
        raise _Rejected("long_key")
    return members


def _integer(digits: str) -> int:
    if len(digits) > MAX_NUMBER_LENGTH:
        raise _Rejected("bad_number")
    return int(digits)


def _float(digits: str) -> float:
    if len(digits) > MAX_NUMBER_LENGTH or not math.isfinite(float(digits)):
        raise _Rejected("bad_number")
    return float(digits)


def _constant(name: str) -> None:
    raise _Rejected("bad_number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
