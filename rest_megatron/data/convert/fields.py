"""Tools and calls as the sources spell them: nested or flat, objects or JSON strings, `arguments` or `parameters`."""

import json

from rest_megatron.data.convert.dialogue import Call, Tool
from rest_megatron.data.rows import BadRow, describe, field

CALL_NAMES = ("name", "tool")
CALL_PARAMETERS = ("arguments", "parameters")


def from_json(value: object, what: str) -> object:
    """The value itself, or what it says when it is a string of JSON. Raises BadRow; what: its name in the message."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{what} is not valid JSON: {error}: {describe(value)}") from None


def read_tools(value: object, what: str = "tools") -> tuple[Tool, ...]:
    """Tools from a list, or its JSON, of {name, description, parameters}, each also inside a `function`.

    parameters: a JSON schema with `properties`, whose `required` may stand one level up, or name -> schema at once.
    Raises BadRow.
    """
    tools = from_json(value, what)
    if not isinstance(tools, list):
        raise BadRow(f"{what} is {describe(tools)}, must be a list")
    return tuple(_read_tool(tool, f"{what}[{number}]") for number, tool in enumerate(tools))


def _read_tool(tool: object, what: str) -> Tool:
    tool = _object(tool, what)
    tool = _object(tool.get("function") or tool, f"{what}.function")
    schema = _object(from_json(tool.get("parameters") or {}, f"{what}.parameters"), f"{what}.parameters")
    required = tool.get("required")
    if schema.get("type") in ("object", "dict"):
        required = schema.get("required", required)
        schema = _object(schema.get("properties") or {}, f"{what}.parameters.properties")
    if not isinstance(required, list | None) or not all(isinstance(name, str) for name in required or ()):
        raise BadRow(f"{what}.required is {describe(required)}, must be a list of names")
    description = tool.get("description") or ""
    if not isinstance(description, str):
        raise BadRow(f"{what}.description is {describe(description)}, must be a str")
    return Tool(_name(tool, ("name",), what), description, schema, None if required is None else tuple(required))


def read_calls(value: object, what: str) -> tuple[Call, ...]:
    """Calls from one object, a list of them, or the JSON of either; each also inside a `function`.

    A call holds `name` (or `tool`) and `arguments` or `parameters`, an object or its JSON; none of them: no parameters.
    Raises BadRow.
    """
    calls = from_json(value, what)
    if not isinstance(calls, list):
        return (_read_call(calls, what),)
    return tuple(_read_call(call, f"{what}[{number}]") for number, call in enumerate(calls))


def _read_call(call: object, what: str) -> Call:
    call = _object(call, what)
    call = _object(call.get("function") or call, f"{what}.function")
    given = [key for key in CALL_PARAMETERS if call.get(key) not in (None, "")]
    if len(given) > 1:
        raise BadRow(f"{what} has both {' and '.join(given)}, must have one")
    parameters = from_json(call[given[0]], f"{what}.{given[0]}") if given else {}
    return Call(_name(call, CALL_NAMES, what), _object(parameters, f"{what}.{given[0]}" if given else what))


def _name(owner: dict, keys: tuple[str, ...], what: str) -> str:
    key = next((key for key in keys if key in owner), keys[0])
    try:
        name = field(owner, key, str)
    except BadRow as fault:
        raise BadRow(f"{what}: {fault}") from None
    if not name.strip():
        raise BadRow(f"{what}: field {key!r} must not be blank")
    return name


def _object(value: object, what: str) -> dict:
    if not isinstance(value, dict):
        raise BadRow(f"{what} is {describe(value)}, must be an object")
    return value


def split_thought(content: str) -> tuple[str, str]:
    """(thought, rest) of an assistant's text that may begin with <think>; "" where there is none.

    The thought ends at the last </think>: thoughts of reasoning models quote tags.
    """
    thought, closed, rest = content.rpartition("</think>")
    opened = thought.lstrip().startswith("<think>")
    if not (opened and closed):
        return "", content.strip()
    return thought.lstrip().removeprefix("<think>").strip(), rest.strip()
