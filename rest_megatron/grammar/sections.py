"""Where the sections of an answer lie, in bytes.

Token regions (`method/regions.py`) and rewards (`reward/parse.py`) both read the spans found here, so they cannot
disagree about what a byte is. `split` takes any bytes. It finds spans, it does not judge them: a truncated or broken
answer gives the spans that can be found.

Tags count by their place. Inside the thought, a JSON string or a tagged response a tag is text:
- A thought ends at a `</think>`: where responses have tags, at one that an action (a tool_call or a response) follows.
  The first one wins when sound sections follow it to the end of the answer (then later ones are quoted in strings);
  otherwise the last one (then earlier ones are quoted in the thought). Only these two are tried, so the work stays
  linear. Without an action, the last `</think>` ends it.
- A tool_call ends at its first closing tag outside JSON strings.
- A tagged response ends at the first `</response>`.
- An unclosed section runs to the end of the answer.
- Beyond MAX_ENTRIES actions the rest is text.
"""

import re
from typing import NamedTuple

from rest_megatron.grammar.call import MAX_ENTRIES, CallSpan, Span, read_call
from rest_megatron.grammar.declare import THINK, TOOLRL, Grammar, Kind


class Section(NamedTuple):
    """`text[start:end]`, tags included; the content is `text[body_start:body_end]`.

    calls and junk (bytes that belong to no call) are filled for a tool_call only, up to MAX_ENTRIES.
    """

    kind: Kind
    start: int
    body_start: int
    body_end: int
    end: int
    closed: bool
    calls: tuple[CallSpan, ...] = ()
    junk: tuple[Span, ...] = ()


_SPACE = re.compile(rb"[ \t\r\n]*+")


def split(text: bytes, grammar: Grammar = TOOLRL, *, think_open: bool = False) -> list[Section]:
    """The sections of an answer in order; what lies between them is outside the grammar. Linear in len(text).

    think_open: the prompt has opened the thought (see `opens_think`), so the answer begins inside it. ValueError
    where the grammar has no thought.
    """
    think = grammar.think
    if think is None:
        if think_open:
            raise ValueError("the prompt opens a thought, but answers of this grammar have none; use toolrl or hermes")
        return _actions(text, 0, grammar)
    start, body_start = (0, 0) if think_open else _thought_start(text, think.open, grammar)
    if start == -1:
        return _actions(text, 0, grammar)
    ends = _thought_ends(text, body_start, think.close, grammar)
    if not ends:
        return [Section(Kind.THINK, start, body_start, len(text), len(text), closed=False)]
    for end in ends:
        after = end + len(think.close)
        actions = _actions(text, after, grammar)
        if actions and not outside(text, actions, after) and all(_sound(text, part, grammar) for part in actions):
            break
    return [Section(Kind.THINK, start, body_start, end, after, closed=True), *actions]


def opens_think(prompt: bytes) -> bool:
    """Whether a rendered prompt ends inside a thought that its template has opened: `<think>`, then white space."""
    return prompt.rstrip().endswith(THINK.open)


def outside(text: bytes, sections: list[Section], start: int = 0) -> list[Span]:
    """The gaps before, between and after `sections` that hold more than white space."""
    return [(a, b) for a, b in gaps(text, sections, start) if text[a:b].strip()]


def gaps(text: bytes, sections: list[Section], start: int = 0) -> list[Span]:
    """The stretches before, between and after `sections`, empty ones included: one more than there are sections."""
    begins = [start, *(section.end for section in sections)]
    ends = [*(section.start for section in sections), len(text)]
    return list(zip(begins, ends, strict=True))


def _thought_start(text: bytes, tag: bytes, grammar: Grammar) -> Span:
    """Where the thought's opening tag begins and ends, or (-1, -1)."""
    start = text.find(tag)
    if start == -1:
        return -1, -1
    before_actions = start < _find(grammar.action, text, 0)
    meant = before_actions if grammar.think_required else not text[:start].strip()
    return (start, start + len(tag)) if meant else (-1, -1)


def _thought_ends(text: bytes, start: int, close: bytes, grammar: Grammar) -> list[int]:
    """Where the thought may end: first and last `</think>` before an action, else the last one of all."""
    last = -1
    followed: list[int] = []
    pos = text.find(close, start)
    while pos != -1:
        last = pos
        after = pos + len(close)
        if grammar.response is None or grammar.action.match(text, _past(_SPACE, text, after)):
            followed.append(pos)
        pos = text.find(close, after)
    if followed:
        return sorted({followed[0], followed[-1]})
    return [] if last == -1 else [last]


def _sound(text: bytes, section: Section, grammar: Grammar) -> bool:
    """Whether an action looks like one that is meant, whole or cut short by the end of the text."""
    if section.kind is Kind.RESPONSE:
        return not any(tag in text[section.body_start : section.body_end] for tag in grammar.tags)
    return not section.junk and all(call.closed or call.end == len(text) for call in section.calls)


def _actions(text: bytes, start: int, grammar: Grammar) -> list[Section]:
    """The tool_call and response sections from `start` on, in any order."""
    sections = []
    pos = start
    if grammar.bare_calls and (bare := _bare_calls(text, start, grammar)):
        sections.append(bare)
        pos = bare.end
    while len(sections) < MAX_ENTRIES and (action := grammar.action.search(text, pos)):
        if grammar.response and action.group() == grammar.response.open:
            sections.append(_tagged_response(text, action.start(), action.end(), grammar.response.close))
        else:
            sections.append(_tool_call(text, action.start(), action.end(), grammar))
        pos = sections[-1].end
    return sections if grammar.response else _with_text(text, sections, start)


def _with_text(text: bytes, sections: list[Section], start: int) -> list[Section]:
    """`sections` and, as responses, the text around them; the white space between text and a tag is outside."""
    responses = []
    for a, b in outside(text, sections, start):
        if a > 0:
            a = b - len(text[a:b].lstrip())
        if b < len(text):
            b = a + len(text[a:b].rstrip())
        responses.append(Section(Kind.RESPONSE, a, a, b, b, closed=True))
    return sorted([*sections, *responses], key=lambda section: section.start)


def _tagged_response(text: bytes, start: int, body_start: int, close: bytes) -> Section:
    body_end = text.find(close, body_start)
    if body_end == -1:
        return Section(Kind.RESPONSE, start, body_start, len(text), len(text), closed=False)
    end = body_end + len(close)
    return Section(Kind.RESPONSE, start, body_start, body_end, end, closed=True)


def _bare_calls(text: bytes, start: int, grammar: Grammar) -> Section | None:
    """Calls that begin the text without a tag: an object with a name and parameters, or cut short with one of them.

    Other JSON is a response.
    """
    start = _past(_SPACE, text, start)
    if not text.startswith(b"{", start):
        return None
    first = read_call(text, start)
    cut = not first.closed and first.end == len(text)
    meant = (first.names or first.parameters) if cut else (first.names and first.parameters)
    return _tool_call(text, start, start, grammar) if meant else None


def _tool_call(text: bytes, start: int, body_start: int, grammar: Grammar) -> Section:
    """Calls up to the end of their block. After an error inside a call the rest of its line is junk."""
    calls: list[CallSpan] = []
    junk: list[Span] = []
    pos = _past(_SPACE, text, body_start)
    while pos < len(text) and not text.startswith(grammar.block_end, pos):
        skipped = _SPACE
        if len(calls) + len(junk) >= MAX_ENTRIES:
            end = text.find(grammar.block_end, pos)
            resume = len(text) if end == -1 else end
        elif text[pos] == ord("{"):
            calls.append(read_call(text, pos))
            pos = calls[-1].end
            resume = pos if calls[-1].closed else _find(grammar.after_error, text, pos)
            skipped = grammar.between_calls
        else:
            resume = _find(grammar.after_junk, text, pos)
        if resume > pos:
            junk.append((pos, resume))
        pos = _past(skipped, text, resume)
    closed = not grammar.tool_call.close or pos < len(text)
    end = pos + len(grammar.tool_call.close) if closed else pos
    return Section(Kind.TOOL_CALL, start, body_start, pos, end, closed, tuple(calls), tuple(junk))


def _past(pattern: re.Pattern[bytes], text: bytes, pos: int) -> int:
    """End of the match at `pos`, or `pos`."""
    match = pattern.match(text, pos)
    return match.end() if match else pos


def _find(pattern: re.Pattern[bytes], text: bytes, pos: int) -> int:
    """Start of the next match, or len(text)."""
    match = pattern.search(text, pos)
    return match.start() if match else len(text)
