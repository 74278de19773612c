"""One training row per action of the assistant, each with all that came before it (SWiRL, arXiv 2504.04736)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rest_megatron.data.convert.dialogue import Action, Dialogue, Turn
from rest_megatron.data.convert.tagged_calls import MARK

UNREAD = "a call that is not read as one"


@dataclass(frozen=True)
class Step:
    """An action to learn. number: its place among the dialogue's actions, from 0. history: every turn before it."""

    dialogue: Dialogue
    number: int
    history: tuple[Turn, ...]
    action: Action


def steps(dialogue: Dialogue) -> Iterator[Step]:
    """Every action of the dialogue as a step."""
    number = 0
    for position, turn in enumerate(dialogue.turns):
        if isinstance(turn, Action):
            yield Step(dialogue, number, dialogue.turns[:position], turn)
            number += 1


def unusable(step: Step) -> str:
    """Why nothing can be learnt from the step, "" when it can."""
    if not step.dialogue.tools:
        return "no tools on offer"
    if not step.history or isinstance(step.history[-1], Action):
        return "answers neither the user nor a tool"
    if {call.name for call in step.action.calls} - {tool.name for tool in step.dialogue.tools}:
        return "calls a tool that is not on offer"
    names = "|".join(re.escape(tool.name) for tool in step.dialogue.tools)
    unread = re.compile(rf"{re.escape(MARK)}|\[\s*(?:{names})\s*\(")  # a tag, or ToolACE's brackets
    if unread.search(step.action.response):
        return f"its text holds {UNREAD}"
    if any(isinstance(turn, Action) and unread.search(turn.response) for turn in step.history):
        return f"follows a text that holds {UNREAD}"
    return ""
