"""Calls in ToolACE's notation: `[Func Name(a="x", b=[1, {"k": None}]), other/func()]`.

Names may hold spaces, dots, slashes and parentheses, so they are looked up in the tools on offer, the longest first.
Values are literals of Python or JSON. One pass from left to right; nothing is evaluated.
"""

import re
from collections.abc import Callable, Iterable

from rest_megatron.data.convert.dialogue import Call
from rest_megatron.data.rows import BadRow

MAX_DEPTH = 32

_SPACE = re.compile(r"\s+")
_NAME = re.compile(r"[^()\[\]=,\"']+")  # of a tool that is not on offer
_KEY = re.compile(r"[^()=,\"']+")
_NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"\w+")
_STRING = {quote: re.compile(rf"{quote}((?:[^{quote}\\]|\\.)*){quote}", re.DOTALL) for quote in "\"'"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": "", **{char: char for char in "\\\"'/"}}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


def parse_calls(text: str, tool_names: Iterable[str]) -> tuple[Call, ...]:
    """The calls that `text` consists of. Raises BadRow with the character at which it is something else."""
    return _Parser(text, sorted(tool_names, key=len, reverse=True)).calls()


class _Parser:
    def __init__(self, text: str, names: list[str]) -> None:
        self.text, self.names, self.at = text, names, 0

    def calls(self) -> tuple[Call, ...]:
        self.skip_space()
        self.expect("[")
        calls = self.items("]", self.call)
        if self.at < len(self.text):
            raise self.error("the end of the text")
        return tuple(calls)

    def call(self) -> Call:
        name = self.name()
        self.expect("(")
        arguments = self.items(")", self.argument)
        parameters = dict(arguments)
        if len(parameters) < len(arguments):
            raise self.error(f"each argument of {name!r} once")
        return Call(name, parameters)

    def name(self) -> str:
        for name in self.names:
            if self.text.startswith(name, self.at):
                end = self.after_space(self.at + len(name))
                if self.text.startswith("(", end):
                    self.at = end
                    return name
        return self.take(_NAME, "a tool's name").strip()

    def argument(self) -> tuple[str, object]:
        key = self.take(_KEY, "an argument's name").strip()
        self.expect("=")
        return key, self.value()

    def value(self, depth: int = 1) -> object:
        if depth > MAX_DEPTH:
            raise self.error(f"no deeper nesting than {MAX_DEPTH}")
        char = self.text[self.at : self.at + 1]
        if char in ("'", '"'):
            return self.string()
        if char == "[":
            self.expect("[")
            return self.items("]", lambda: self.value(depth + 1))
        if char == "{":
            self.expect("{")
            members = self.items("}", lambda: self.member(depth + 1))
            if len(dict(members)) < len(members):
                raise self.error("each key once")
            return dict(members)
        if number := _NUMBER.match(self.text, self.at):
            return self.number(number)
        word = self.take(_WORD, "a value")
        if word not in _WORDS:
            self.at -= len(word)
            raise self.error("a value")
        return _WORDS[word]

    def member(self, depth: int) -> tuple[str, object]:
        key = self.string()
        self.skip_space()
        self.expect(":")
        return key, self.value(depth)

    def string(self) -> str:
        quote = self.text[self.at : self.at + 1]
        match = _STRING[quote].match(self.text, self.at) if quote in _STRING else None
        if match is None:
            raise self.error("a closed string")
        self.at = match.end()
        body = _ESCAPE.sub(_unescape, match[1])
        # A pair of \u escapes beyond the basic plane becomes its character; a lone one stays and is refused later.
        return body.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def number(self, match: re.Match) -> int | float:
        self.at = match.end()
        try:
            return int(match[0]) if match[0].lstrip("+-").isdecimal() else float(match[0])
        except ValueError:  # more digits than Python converts
            raise self.error("a shorter number") from None

    def items(self, end: str, item: Callable[[], object]) -> list:
        """`item, item, ...` up to and with `end`."""
        self.skip_space()
        found: list = []
        while not self.text.startswith(end, self.at):
            if found:
                self.expect(",")
            found.append(item())
            self.skip_space()
        self.expect(end)
        return found

    def expect(self, char: str) -> None:
        """Step over `char` and the white space after it."""
        if not self.text.startswith(char, self.at):
            raise self.error(repr(char))
        self.at += len(char)
        self.skip_space()

    def take(self, pattern: re.Pattern, what: str) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.error(what)
        self.at = match.end()
        return match[0]

    def skip_space(self) -> None:
        self.at = self.after_space(self.at)

    def after_space(self, at: int) -> int:
        """Where the white space that may begin at `at` ends."""
        match = _SPACE.match(self.text, at)
        return match.end() if match else at

    def error(self, wanted: str) -> BadRow:
        found = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end"
        return BadRow(f"the calls have {found} at character {self.at}, must have {wanted}")


def _unescape(match: re.Match) -> str:
    code = match[1] or match[2]
    return chr(int(code, 16)) if code else _ESCAPED.get(match[3], match[0])
