"""The normal form every source of tool-use dialogues is read into.

A dialogue is a list of tools and a list of turns: what the user says (`Query`), what the assistant does (`Action`) and
what the tools return (`Results`). Parameter values are plain JSON values.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from rest_megatron.data.rows import BadRow


@dataclass(frozen=True)
class Tool:
    """A tool on offer. parameters: name -> its schema, as the source has it. required: None when it does not say."""

    name: str
    description: str
    parameters: dict[str, object]
    required: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Call:
    """One tool call. parameters: name -> JSON value."""

    name: str
    parameters: dict[str, object]


@dataclass(frozen=True)
class Query:
    """A message of the user."""

    text: str


@dataclass(frozen=True)
class Action:
    """What the assistant does in one turn: calls, a response, or both. thought and response: "" when there is none."""

    calls: tuple[Call, ...] = ()
    response: str = ""
    thought: str = ""


@dataclass(frozen=True)
class Results:
    """What the tools returned, one text per message."""

    texts: tuple[str, ...]


Turn: TypeAlias = Query | Action | Results


@dataclass(frozen=True)
class Dialogue:
    """One record of a source. id: the source's own, "" when it has none. system: its system message without tools."""

    tools: tuple[Tool, ...]
    turns: tuple[Turn, ...]
    id: str = ""
    system: str = ""


@dataclass
class Turns:
    """Turns in the making: `add` them in order, then `done`.

    Messages that belong to one turn become one: results that follow each other, and assistant messages that follow
    each other, as long as no earlier call is followed by a text alone. That text answers nobody and stays a turn.
    """

    turns: list[Turn] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        """Append `turn`, or join it to the last one."""
        last = self.turns[-1] if self.turns else None
        if isinstance(turn, Results) and isinstance(last, Results):
            self.turns[-1] = Results(last.texts + turn.texts)
        elif isinstance(turn, Action) and isinstance(last, Action) and (turn.calls or not last.calls):
            self.turns[-1] = _joined(last, turn)
        else:
            self.turns.append(turn)

    def done(self) -> tuple[Turn, ...]:
        """The turns; BadRow when the assistant does nothing in them."""
        if not any(isinstance(turn, Action) for turn in self.turns):
            raise BadRow("holds no action of the assistant, must hold at least one")
        return tuple(self.turns)


def _joined(first: Action, second: Action) -> Action:
    return Action(
        calls=first.calls + second.calls,
        response="\n".join(filter(None, (first.response, second.response))),
        thought="\n".join(filter(None, (first.thought, second.thought))),
    )
