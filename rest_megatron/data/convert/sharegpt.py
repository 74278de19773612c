"""ShareGPT dialogues with tools, as Glaive's: {conversations: [{from, value}], tools, system?}.

Calls are those of a speaker function_call, or stand in the text, see `tagged_calls`.
"""

from collections.abc import Iterator

from rest_megatron.data.convert.dialogue import Action, Dialogue, Query, Results, Turn, Turns
from rest_megatron.data.convert.fields import read_calls, read_id, read_tools, split_thought
from rest_megatron.data.convert.tagged_calls import split_calls
from rest_megatron.data.rows import BadRow, describe, field

TOOL_SPEAKERS = ("observation", "tool")


def read(record: dict) -> Dialogue:
    """The dialogue of one record. Raises BadRow."""
    tools = read_tools(record.get("tools") or [])
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise BadRow(f"field 'system' is {describe(system)}, must be a str")
    turns, systems = Turns(), [system.strip()]
    for number, (speaker, value) in enumerate(read_conversations(record)):
        if speaker == "system":
            systems.append(value)
        else:
            turns.add(_turn(speaker, value, f"conversations[{number}]"))
    return Dialogue(tools, turns.done(), read_id(record), "\n\n".join(filter(None, systems)))


def read_conversations(record: dict) -> Iterator[tuple[str, str]]:
    """(speaker, text) of each message, the text without white space around it. Raises BadRow.

    Only a tool may return nothing.
    """
    for number, message in enumerate(field(record, "conversations", list)):
        what = f"conversations[{number}]"
        if not isinstance(message, dict):
            raise BadRow(f"{what} is {describe(message)}, must be an object with from and value")
        try:
            speaker, value = field(message, "from", str), field(message, "value", str).strip()
        except BadRow as fault:
            raise BadRow(f"{what}: {fault}") from None
        if not value and speaker not in TOOL_SPEAKERS:
            raise BadRow(f"{what}: field 'value' must not be blank")
        yield speaker, value


def _turn(speaker: str, value: str, what: str) -> Turn:
    if speaker in ("human", "user"):
        return Query(value)
    if speaker in TOOL_SPEAKERS:
        return Results((value,))
    if speaker not in ("gpt", "assistant", "function_call"):
        known = "human, user, gpt, assistant, function_call, observation, tool, system"
        raise BadRow(f"{what} is from {speaker!r}, must be one of {known}")
    thought, rest = split_thought(value)
    if speaker == "function_call":
        return Action(calls=read_calls(rest, what), thought=thought)
    calls, response = split_calls(rest)
    return Action(calls, response, thought)
