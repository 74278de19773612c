"""Where the parts of an answer lie, in bytes.

The ToolRL answer, as the prompts ask for it:

    <think> free text </think>
    <tool_call>
    {"name": "f", "parameters": {...}}        one call per line
    </tool_call>
    <response> free text </response>

The tool_call, the response or both follow the thought. Token regions (`method/regions.py`) and rewards
(`reward/parse.py`) both read the spans found here, so they cannot disagree about what a byte is. `split` takes any
bytes. It finds spans, it does not judge them: a truncated or broken answer gives the spans that can be told.

Tags count by their place. Inside the thought, a JSON string or the response a tag is text:
- A thought ends at a `</think>` that an action tag follows. The first one wins when sound actions follow it to the
  end of the answer (then later ones are quoted in strings); otherwise the last one (then earlier ones are quoted in
  the thought). Only these two are tried, so the work stays linear. Without an action, the last `</think>` ends it.
- A tool_call ends at the first `</tool_call>` outside JSON strings.
- A response ends at the first `</response>`.
- An unclosed section runs to the end of the answer.
"""

import re
from typing import NamedTuple


class Tag(NamedTuple):
    """The opening and closing tag of a section."""

    open: bytes
    close: bytes


THINK = Tag(b"<think>", b"</think>")
TOOL_CALL = Tag(b"<tool_call>", b"</tool_call>")
RESPONSE = Tag(b"<response>", b"</response>")
TAGS = THINK + TOOL_CALL + RESPONSE
NAME_KEYS = (b"name",)
PARAMETER_KEYS = (b"parameters", b"arguments")

Span = tuple[int, int]


class CallSpan(NamedTuple):
    """One call: `text[start:end]` from its opening brace to after its closing one, or to the first error.

    names: name values, without their quotes. parameters: whole values of the parameter keys. others: members with
    any other key, key included. A key may come twice; that is for the parser to judge. depth: how deep brackets nest.
    """

    start: int
    end: int
    closed: bool
    depth: int
    names: tuple[Span, ...]
    parameters: tuple[Span, ...]
    others: tuple[Span, ...]


class Section(NamedTuple):
    """`text[start:end]`, tags included; the content is `text[body_start:body_end]`.

    calls and junk (bytes that belong to no call) are filled for a tool_call only, up to MAX_ENTRIES.
    """

    tag: Tag
    start: int
    body_start: int
    body_end: int
    end: int
    closed: bool
    calls: tuple[CallSpan, ...] = ()
    junk: tuple[Span, ...] = ()


# Every quantifier is followed by something optional or by nothing, so no match ever has to backtrack.
_STRING_BODY = rb'[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*'
_STRING_END = rb'(?:(")|\\\Z)?'  # its group: the string is closed, not cut short or broken by a control character
_STRING = re.compile(rb'"' + _STRING_BODY + _STRING_END)
_NESTED = re.compile(rb'([{\[])|([}\]])|"' + _STRING_BODY + _STRING_END + rb"|(?=<)")  # no JSON has a bare "<"
_SCALAR = re.compile(rb'[^ \t\r\n,:"{}\[\]<]*')
_COLON = re.compile(rb"[ \t\r\n]*(:)?[ \t\r\n]*")
_SPACE = re.compile(rb"[ \t\r\n]*")
_SEPARATOR = re.compile(rb"[ \t\r\n,]*")
_ACTION = re.compile(b"|".join((TOOL_CALL.open, RESPONSE.open)))
_AFTER_ERROR = re.compile(b"\n|" + TOOL_CALL.close)
_AFTER_JUNK = re.compile(b"[\n{]|" + TOOL_CALL.close)

# Limits that bound the work on hostile text, far above what an answer needs; what exceeds them is junk.
MAX_ENTRIES = 256  # calls and stretches of junk in one tool_call, unknown members in one call
MAX_DEPTH = 32  # brackets around a value, those of the call included


def split(text: bytes) -> list[Section]:
    """The sections of an answer in order; what lies between them is outside the grammar. Linear in len(text)."""
    start = text.find(THINK.open)
    action = _find(_ACTION, text, 0)
    if start == -1 or action < start:
        return _actions(text, 0)
    body_start = start + len(THINK.open)
    ends = _thought_ends(text, body_start)
    if not ends:
        return [Section(THINK, start, body_start, len(text), len(text), closed=False)]
    for end in ends:
        after = end + len(THINK.close)
        actions = _actions(text, after)
        if actions and not outside(text, actions, after) and all(_sound(text, action) for action in actions):
            break
    return [Section(THINK, start, body_start, end, after, closed=True), *actions]


def outside(text: bytes, sections: list[Section], start: int = 0) -> list[Span]:
    """The gaps before, between and after `sections` that hold more than white space."""
    return [(a, b) for a, b in gaps(text, sections, start) if text[a:b].strip()]


def gaps(text: bytes, sections: list[Section], start: int = 0) -> list[Span]:
    """The stretches before, between and after `sections`, empty ones included: one more than there are sections."""
    begins = [start, *(section.end for section in sections)]
    ends = [*(section.start for section in sections), len(text)]
    return list(zip(begins, ends, strict=True))


def _thought_ends(text: bytes, start: int) -> list[int]:
    """Where the thought may end: first and last `</think>` before an action, else the last one of all."""
    last, followed = -1, []
    pos = text.find(THINK.close, start)
    while pos != -1:
        last = pos
        after = pos + len(THINK.close)
        if _ACTION.match(text, _SPACE.match(text, after).end()):
            followed.append(pos)
        pos = text.find(THINK.close, after)
    if followed:
        return sorted({followed[0], followed[-1]})
    return [] if last == -1 else [last]


def _sound(text: bytes, action: Section) -> bool:
    """Whether an action looks like one that is meant, whole or cut short by the end of the text."""
    if action.tag is RESPONSE:
        return not any(tag in text[action.body_start : action.body_end] for tag in TAGS)
    return not action.junk and all(call.closed or call.end == len(text) for call in action.calls)


def _actions(text: bytes, pos: int) -> list[Section]:
    """The tool_call and response sections from `pos` on, in any number and order."""
    sections = []
    while action := _ACTION.search(text, pos):
        read = _tool_call if action.group() == TOOL_CALL.open else _response
        sections.append(read(text, action.start()))
        pos = sections[-1].end
    return sections


def _response(text: bytes, start: int) -> Section:
    body_start = start + len(RESPONSE.open)
    body_end = text.find(RESPONSE.close, body_start)
    if body_end == -1:
        return Section(RESPONSE, start, body_start, len(text), len(text), closed=False)
    return Section(RESPONSE, start, body_start, body_end, body_end + len(RESPONSE.close), closed=True)


def _tool_call(text: bytes, start: int) -> Section:
    """Calls up to the closing tag. After an error inside a call the rest of its line is junk."""
    pos = body_start = start + len(TOOL_CALL.open)
    calls, junk = [], []
    while (pos := _SPACE.match(text, pos).end()) < len(text):
        if text.startswith(TOOL_CALL.close, pos):
            end = pos + len(TOOL_CALL.close)
            return Section(TOOL_CALL, start, body_start, pos, end, True, tuple(calls), tuple(junk))
        if len(calls) + len(junk) >= MAX_ENTRIES:
            close = text.find(TOOL_CALL.close, pos)
            resume = len(text) if close == -1 else close
        elif text[pos] == ord("{"):
            calls.append(_call(text, pos))
            pos = calls[-1].end
            resume = pos if calls[-1].closed else _find(_AFTER_ERROR, text, pos)
        else:
            resume = _find(_AFTER_JUNK, text, pos)
        if resume > pos:
            junk.append((pos, resume))
            pos = resume
    return Section(TOOL_CALL, start, body_start, pos, pos, False, tuple(calls), tuple(junk))


def _call(text: bytes, start: int) -> CallSpan:
    """One JSON object from its opening brace, member by member; stops at the first byte that cannot belong to it."""
    names, parameters, others = [], [], []
    pos, depth, closed = start + 1, 1, False
    while True:
        key_start = pos = _SEPARATOR.match(text, pos).end()
        key = _STRING.match(text, pos)
        if key is None:
            closed = text.startswith(b"}", pos)
            pos += closed
            break
        colon = _COLON.match(text, key.end())
        if not (key[1] and colon[1]):
            pos = colon.end() if key[1] else key.end()
            break
        value_start = colon.end()
        pos, complete, nested = _value_end(text, value_start)
        depth = max(depth, 1 + nested)
        key_text = text[key_start + 1 : key.end() - 1]
        if key_text in NAME_KEYS:
            quoted = text.startswith(b'"', value_start)
            names.append((value_start + quoted, pos - (quoted and complete)))
        elif key_text in PARAMETER_KEYS:
            parameters.append((value_start, pos))
        else:
            others.append((key_start, pos))
        if not complete or len(others) >= MAX_ENTRIES:
            break
    return CallSpan(start, pos, closed, depth, tuple(names), tuple(parameters), tuple(others))


def _value_end(text: bytes, pos: int) -> tuple[int, bool, int]:
    """(end, complete, depth) of the JSON value at `pos`; brackets are counted, not paired, until json reads them."""
    if string := _STRING.match(text, pos):
        return string.end(), bool(string[1]), 0
    if not text.startswith((b"{", b"["), pos):
        return _SCALAR.match(text, pos).end(), True, 0
    level = depth = 0  # below the call's own brace
    for stop in _NESTED.finditer(text, pos):
        kind = stop.lastindex  # 1 opening, 2 closing bracket, 3 whole string, None: no JSON from here on
        if kind == 1:
            level += 1
            depth = max(depth, level)
            if depth >= MAX_DEPTH:
                return stop.start(), False, depth
        elif kind == 2:
            level -= 1
            if level == 0:
                return stop.end(), True, depth
        elif kind is None:
            return stop.end(), False, depth
    return len(text), False, depth


def _find(pattern: re.Pattern, text: bytes, pos: int) -> int:
    """Start of the next match, or len(text)."""
    match = pattern.search(text, pos)
    return match.start() if match else len(text)
