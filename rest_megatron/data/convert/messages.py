"""Chat messages with tools: OpenAI's {messages: [{role, content, tool_calls}], tools}, and two dialects of it.

Typed content (LLaMA-Factory): content = [{type: text | reasoning | tool_call, value}].
HammerBench: a role "function call" whose content is the call, tools in `multiple_tools`.
"""

from collections.abc import Iterator

from rest_megatron.data.convert.dialogue import Action, Dialogue, Query, Results, Turn, Turns
from rest_megatron.data.convert.fields import read_calls, read_id, read_tools, split_thought, to_json
from rest_megatron.data.convert.tagged_calls import split_calls
from rest_megatron.data.rows import BadRow, describe, field

ROLES = ("system", "developer", "user", "assistant", "function call", "tool", "function")


def read(record: dict) -> Dialogue:
    """The dialogue of one record. Raises BadRow."""
    tools = read_tools(record.get("tools") or record.get("multiple_tools") or [])
    turns, system = Turns(), list[str]()
    for number, message in enumerate(field(record, "messages", list)):
        what = f"messages[{number}]"
        if not isinstance(message, dict):
            raise BadRow(f"{what} is {describe(message)}, must be an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise BadRow(f"{what} has role {role!r}, must be one of {', '.join(ROLES)}")
        if role in ("system", "developer"):
            system.append(_text(message, what))
        else:
            turns.add(_turn(role, message, what))
    return Dialogue(tools, turns.done(), read_id(record), "\n\n".join(system))


def _turn(role: str, message: dict, what: str) -> Turn:
    if role == "function call":
        return Action(calls=read_calls(message.get("content"), what))
    if role in ("tool", "function"):
        content = message.get("content")
        return Results((to_json(content, f"{what}.content") if _is_data(content) else _text(message, what),))
    turn = Query(_text(message, what)) if role == "user" else _action(message, what)
    if turn in (Query(""), Action()):
        raise BadRow(f"{what} of the {role} holds nothing, must hold a content{'' if role == 'user' else ' or calls'}")
    return turn


def _is_data(content: object) -> bool:
    """Whether a tool's content is a value of its own: neither a text nor a list of typed parts."""
    if not isinstance(content, list):
        return not isinstance(content, str)
    return not all(isinstance(part, dict) and _is_typed(part) for part in content)


def _is_typed(part: dict) -> bool:
    """Whether it has a type and the content that belongs to it, as {type: image_url, image_url: ...}."""
    return isinstance(part.get("type"), str) and any(key in part for key in ("text", "value", part["type"]))


def _action(message: dict, what: str) -> Action:
    parts = list(_parts(message, what))
    texts, thoughts = ("\n".join(part for kind, part in parts if kind == wanted) for wanted in ("text", "reasoning"))
    calls = tuple(call for kind, part in parts if kind == "tool_call" for call in read_calls(part, what))
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            calls += read_calls(message[key], f"{what}.{key}")
    quoted, response = split_thought(texts)
    if not calls:
        calls, response = split_calls(response)
    thought = thoughts or message.get("reasoning_content") or quoted
    if not isinstance(thought, str):
        raise BadRow(f"{what}.reasoning_content is {describe(thought)}, must be a str")
    return Action(calls, response, thought.strip())


def _text(message: dict, what: str) -> str:
    kinds, texts = zip(*_parts(message, what), strict=True) if message.get("content") else ((), ())
    if any(kind != "text" for kind in kinds):
        raise BadRow(f"{what} has a content of type {next(kind for kind in kinds if kind != 'text')!r}, must be text")
    return "\n".join(texts).strip()


def _parts(message: dict, what: str) -> Iterator[tuple[str, str]]:
    """(type, text) of each part of the content."""
    content = message.get("content") or []
    if not isinstance(content, str | list):
        raise BadRow(f"{what}.content is {describe(content)}, must be a str or a list of parts")
    for part in [{"type": "text", "value": content}] if isinstance(content, str) else content:
        part = part if isinstance(part, dict) else {"value": part}
        kind = part.get("type")
        value = part["text"] if part.get("value") is None and "text" in part else part.get("value")
        if kind not in ("text", "reasoning", "tool_call") or not isinstance(value, str):
            raise BadRow(f"{what} has the content {describe(part)}, must be a text, a reasoning or a tool_call")
        yield kind, value
