"""The grammars that answers may follow, as declarations.

|          | toolrl                             | hermes (Qwen)             | llama3                           |
|----------|------------------------------------|---------------------------|----------------------------------|
| thought  | <think> text </think>, required    | the same, optional        | none                             |
| calls    | one <tool_call> block, in it       | any number of <tool_call> | from <|python_tag|> on, or from  |
|          | a JSON object per line,            | blocks, in each           | the start without it; ";" or     |
|          | </tool_call>                       | a JSON object             | white space between the objects  |
| response | <response> text </response>, after | the text outside, before  | the text outside, before         |
|          | the calls                          | the calls                 | the calls                        |

The calls, the response or both follow the thought. A call names its tool under "name" and holds its parameters under
"parameters" or "arguments", in every grammar.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple


class Tag(NamedTuple):
    """The opening and closing tag of a section. An empty closing tag: up to the next opening one, or to the end."""

    open: bytes
    close: bytes


class Kind(Enum):
    """What a section is."""

    THINK = auto()
    TOOL_CALL = auto()
    RESPONSE = auto()


THINK = Tag(b"<think>", b"</think>")
TOOL_CALL = Tag(b"<tool_call>", b"</tool_call>")
RESPONSE = Tag(b"<response>", b"</response>")
PYTHON_TAG = Tag(b"<|python_tag|>", b"")


@dataclass(frozen=True)
class Grammar:
    """What may stand in an answer, and in which order."""

    think: Tag | None
    """None: there is no thought."""
    think_required: bool
    """Otherwise a thought is optional, and only one that begins the answer is meant."""
    tool_call: Tag
    response: Tag | None
    """None: text outside the other sections is the response."""
    order: tuple[Kind, ...]
    """How sections follow one another."""
    one_block: bool
    """At most one tool_call section."""
    one_call: bool
    """At most one call in it."""
    bare_calls: bool
    """An answer may begin with a call that has no tag before it."""
    own_lines: bool
    """Sections and calls begin on a line of their own."""
    call_separator: bytes
    """What may stand between two calls beside white space; a single byte or none."""

    @cached_property
    def tags(self) -> tuple[bytes, ...]:
        """Every tag."""
        pairs = [self.think or (), self.tool_call, self.response or ()]
        return tuple(tag for pair in pairs for tag in pair if tag)

    @cached_property
    def action(self) -> re.Pattern[bytes]:
        """Opens a tool_call or a response."""
        return _any_of(self.tool_call.open, *(self.response or ())[:1])

    @cached_property
    def block_end(self) -> bytes:
        """What ends a tool_call: its closing tag or the next opening one."""
        return self.tool_call.close or self.tool_call.open

    @cached_property
    def after_error(self) -> re.Pattern[bytes]:
        """Where reading goes on after an error inside a call."""
        return _any_of(b"\n", self.call_separator, self.block_end)

    @cached_property
    def after_junk(self) -> re.Pattern[bytes]:
        """Where reading goes on after bytes that begin no call."""
        return _any_of(b"\n", b"{", self.block_end)

    @cached_property
    def between_calls(self) -> re.Pattern[bytes]:
        """What is skipped after a call."""
        return re.compile(rb"[ \t\r\n]*+(?:%b[ \t\r\n]*+)?" % re.escape(self.call_separator))


def _any_of(*words: bytes) -> re.Pattern[bytes]:
    return re.compile(b"|".join(re.escape(word) for word in words if word))


TOOLRL = Grammar(
    think=THINK,
    think_required=True,
    tool_call=TOOL_CALL,
    response=RESPONSE,
    order=(Kind.THINK, Kind.TOOL_CALL, Kind.RESPONSE),
    one_block=True,
    one_call=False,
    bare_calls=False,
    own_lines=True,
    call_separator=b"",
)
HERMES = Grammar(
    think=THINK,
    think_required=False,
    tool_call=TOOL_CALL,
    response=None,
    order=(Kind.THINK, Kind.RESPONSE, Kind.TOOL_CALL),
    one_block=False,
    one_call=True,
    bare_calls=False,
    own_lines=False,
    call_separator=b"",
)
LLAMA3 = Grammar(
    think=None,
    think_required=False,
    tool_call=PYTHON_TAG,
    response=None,
    order=(Kind.RESPONSE, Kind.TOOL_CALL),
    one_block=True,
    one_call=False,
    bare_calls=True,
    own_lines=False,
    call_separator=b";",
)
GRAMMARS = {"toolrl": TOOLRL, "hermes": HERMES, "llama3": LLAMA3}
