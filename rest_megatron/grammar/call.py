"""Where the parts of one call lie: a JSON object, read byte by byte up to its first error.

Repetitions are possessive (`*+`) or stand at the end of their pattern, so no match backtracks and the work is linear.
"""

import json
import re
from typing import NamedTuple

NAME_KEYS = (b"name",)
PARAMETER_KEYS = (b"parameters", b"arguments")

# Limits that bound the work on hostile text, far above what an answer needs.
MAX_ENTRIES = 256  # unknown members in a call, calls and stretches of junk in a tool_call, actions in an answer
MAX_DEPTH = 32  # brackets around a value, those of the call included

Span = tuple[int, int]


class CallSpan(NamedTuple):
    """One call: `text[start:end]` from its opening brace to after its closing one, or to the first error.

    names: name values, without their quotes. parameters: whole values of the parameter keys. others: members with
    any other key, key included. A key may come twice; that is for the parser to judge. too_deep: it ends where brackets
    nest deeper than MAX_DEPTH.
    """

    start: int
    end: int
    closed: bool
    too_deep: bool
    names: tuple[Span, ...]
    parameters: tuple[Span, ...]
    others: tuple[Span, ...]


# A string's inside up to its closing quote. A control character breaks it; the end of the text may cut it short.
_INSIDE = rb'[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+'
_FLAT = rb'[^{}\[\]"<]*+(?:"%b"[^{}\[\]"<]*+)*+' % _INSIDE  # no bracket outside strings; no JSON has a bare "<"
_PARTS = {b"inside": _INSIDE, b"flat": _FLAT, b"space": rb"[ \t\r\n]*+", b"names": b"|".join(NAME_KEYS)}
_PARTS[b"parameters"] = b"|".join(PARAMETER_KEYS)

# Nearly every call looks like this, and one match reads it.
_USUAL = re.compile(
    rb"""\{ %(space)b " (?:%(names)b) " %(space)b : %(space)b " (?P<name> %(inside)b ) " %(space)b ,
    %(space)b " (?:%(parameters)b) " %(space)b : %(space)b (?P<parameters> \{ %(flat)b \} ) %(space)b \}"""
    % _PARTS,
    re.VERBOSE,
)
# The end of the object, or one member with its value; matches anywhere, if only nothing. The last group that matched
# says how far that went.
_MEMBER = re.compile(
    rb"""[ \t\r\n,]*+
    (?: (?P<end> } )
    |   " (?P<key> %(inside)b )
        (?: \\\Z
        |   " %(space)b
            (?: (?P<colon> : %(space)b )
                (?: " %(inside)b (?: (?P<string> " ) | \\\Z )?
                |   (?P<flat> \{ %(flat)b \} | \[ %(flat)b \] )
                |   (?P<nested> [{\[] )
                |   (?P<scalar> [^ \t\r\n,:"{}\[\]<]*+ )
                )
            )?
        )?
    )?"""
    % _PARTS,
    re.VERBOSE,
)
# Matches anywhere, too.
_NEXT_BRACKET = re.compile(rb'%(flat)b(?:(?P<open>[{\[])|(?P<close>[}\]])|"%(inside)b(?:\\\Z)?)?' % _PARTS)


def read_call(text: bytes, start: int) -> CallSpan:
    """The call that opens with the brace at `text[start]`; it ends at the first byte that cannot belong to it."""
    if usual := _USUAL.match(text, start):
        return CallSpan(start, usual.end(), True, False, (usual.span("name"),), (usual.span("parameters"),), ())
    names: list[Span] = []
    parameters: list[Span] = []
    others: list[Span] = []
    pos, closed, too_deep, complete = start + 1, False, False, True
    while complete and len(others) < MAX_ENTRIES and (member := _MEMBER.match(text, pos)):
        pos, reached = member.end(), member.lastgroup
        if reached in (None, "end", "key"):
            closed = reached == "end"
            break
        complete = reached != "colon"
        if reached == "nested":
            pos, complete, too_deep = _nested_end(text, pos)
        value_start = member.end("colon")
        key = _unescaped(member["key"])
        if key in NAME_KEYS:
            quoted = text.startswith(b'"', value_start)
            names.append((value_start + quoted, pos - (reached == "string")))
        elif key in PARAMETER_KEYS:
            parameters.append((value_start, pos))
        else:
            others.append((member.start("key") - 1, pos))
    return CallSpan(start, pos, closed, too_deep, tuple(names), tuple(parameters), tuple(others))


def _unescaped(key: bytes) -> bytes:
    """A key with its escapes resolved, or as it is where they are not valid."""
    if b"\\" not in key:
        return key
    try:
        return json.loads(b'"%b"' % key).encode("utf-8", "surrogatepass")
    except ValueError:
        return key


def _nested_end(text: bytes, pos: int) -> tuple[int, bool, bool]:
    """(end, complete, too deep) of the member value whose opening bracket is the byte before `pos`.

    Brackets are counted, not paired: that is for json.
    """
    depth = 2  # with the call's own brace
    while depth > 1 and (bracket := _NEXT_BRACKET.match(text, pos)):
        pos = bracket.end()
        if bracket.lastgroup == "close":
            depth -= 1
        elif bracket.lastgroup == "open" and depth < MAX_DEPTH:
            depth += 1
        elif bracket.lastgroup == "open":
            return pos - 1, False, True
        else:
            return pos, False, False
    return pos, True, False
