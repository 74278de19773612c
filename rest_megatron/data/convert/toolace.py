"""ToolACE (Hugging Face Team-ACE/ToolACE): {system, conversations: [{from, value}]}.

The tools are a JSON list inside the system message; calls are an assistant's text in brackets, see `bracket_calls`.
"""

import json
import re

from rest_megatron.data.convert.bracket_calls import parse_calls
from rest_megatron.data.convert.dialogue import Action, Dialogue, Query, Results, Tool, Turn, Turns
from rest_megatron.data.convert.fields import read_id, read_tools
from rest_megatron.data.convert.sharegpt import read_conversations
from rest_megatron.data.rows import BadRow, text

TOOLS_MARK = "invoke:"  # ends the sentence in front of the list
_NAME = re.compile(r"[^()\[\]=,\"']*[^()\[\]=,\"'\s]")


def read(record: dict) -> Dialogue:
    """The dialogue of one record. The system message is all about tools and their notation, nothing of it stays."""
    tools = read_tools(_tool_list(text(record, "system")), "the tools in system")
    turns = Turns()
    for speaker, value in read_conversations(record):
        turns.add(_turn(speaker, value, tools))
    return Dialogue(tools, turns.done(), read_id(record))


def _tool_list(system: str) -> object:
    before, marked, after = system.partition(TOOLS_MARK)
    listed = after if marked else before
    start = listed.find("[")
    if start < 0:
        raise BadRow("field 'system' has no JSON list of tools")
    try:
        return json.JSONDecoder().raw_decode(listed, start)[0]
    except (ValueError, RecursionError) as error:
        raise BadRow(f"the tools in system are not valid JSON: {error}") from None


def _turn(speaker: str, value: str, tools: tuple[Tool, ...]) -> Turn:
    if speaker in ("user", "human"):
        return Query(value)
    if speaker in ("assistant", "gpt"):
        names = [tool.name for tool in tools]
        return Action(calls=parse_calls(value, names)) if _is_call(value, names) else Action(response=value)
    if speaker == "tool":
        return Results((value,))
    raise BadRow(f"has a message from {speaker!r}, must be one of user, human, assistant, gpt, tool")


def _is_call(value: str, names: list[str]) -> bool:
    """Whether a text means to be calls, well-formed or not: it begins with "[name(".

    The name of a tool on offer may have white space after it. "[Note] ..." and "[Note (new)]" are texts.
    """
    if not value.startswith("["):
        return False
    head = value[1:].lstrip()
    name, opened, _ = head.partition("(")
    return bool(opened) and (name.strip() in names or bool(_NAME.fullmatch(name)) or _starts_with_any(head, names))


def _starts_with_any(head: str, names: list[str]) -> bool:
    """Names may hold parentheses."""
    return any(head.startswith(name) and head[len(name) :].lstrip().startswith("(") for name in names)
