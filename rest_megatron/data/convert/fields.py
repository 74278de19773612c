"""Tools and calls as the sources spell them: nested or flat, objects or JSON strings, `arguments` or `parameters`."""

import json
from collections.abc import Callable

from rest_megatron.data.convert.dialogue import Call, Tool
from rest_megatron.data.rows import BadRow, describe, field, text

CALL_NAMES = ("name", "tool")
CALL_PARAMETERS = ("arguments", "parameters")


def from_json(value: object, what: str, pairs_hook: Callable[[list], dict] | None = None) -> object:
    """The value itself, or what it says when it is a string of JSON. Raises BadRow; what: its name in the message.

    pairs_hook: makes the objects, as json's object_pairs_hook.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=pairs_hook)
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{what} is not valid JSON: {error}: {describe(value)}") from None


def to_json(value: object, what: str) -> str:
    """The value as JSON. Raises BadRow for what has none, such as the times and bytes that parquet holds."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(f"{what} is not JSON: {error}: {describe(value)}") from None


def read_id(record: dict) -> str:
    """The record's `id` as text, "" when it has none. Raises BadRow when it is not valid Unicode."""
    name = "" if record.get("id") is None else str(record["id"])
    return text({"id": name}, "id") if name.strip() else ""


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
    schema = _json_object(from_json(tool.get("parameters") or {}, f"{what}.parameters"), f"{what}.parameters")
    required = tool.get("required")
    if _is_schema(schema):
        required = schema.get("required", required)
        schema = _object(schema.get("properties") or {}, f"{what}.parameters.properties")
    if not isinstance(required, list | None) or not all(isinstance(name, str) for name in required or ()):
        raise BadRow(f"{what}.required is {describe(required)}, must be a list of names")
    description = tool.get("description") or ""
    if not isinstance(description, str):
        raise BadRow(f"{what}.description is {describe(description)}, must be a str")
    return Tool(_name(tool, ("name",), what), description, schema, None if required is None else tuple(required))


def _is_schema(parameters: dict) -> bool:
    """Whether it is a JSON schema with `properties`, not name -> schema where a parameter may be called so.

    Its type says so, or its list `required`; without both, all properties are objects, as schemas are.
    """
    kind, properties = parameters.get("type"), parameters.get("properties")
    if kind is not None:
        return kind in ("object", "dict") or (isinstance(kind, list) and "object" in kind)
    if not isinstance(properties, dict):
        return False
    return isinstance(parameters.get("required"), list) or all(isinstance(each, dict) for each in properties.values())


def read_calls(value: object, what: str) -> tuple[Call, ...]:
    """Calls from one object, a list of them, or the JSON of either; each also inside a `function`.

    A call holds `name` (or `tool`) and `arguments` or `parameters`, an object or its JSON; none of them: no parameters.
    Raises BadRow, for an object with the same key twice, too.
    """
    calls = from_json(value, what, _unique_keys(what))
    if not isinstance(calls, list):
        return (_read_call(calls, what),)
    return tuple(_read_call(call, f"{what}[{number}]") for number, call in enumerate(calls))


def _read_call(call: object, what: str) -> Call:
    call = _object(call, what)
    call = _object(call.get("function") or call, f"{what}.function")
    given = [key for key in CALL_PARAMETERS if call.get(key) not in (None, "")]
    if len(given) > 1:
        raise BadRow(f"{what} has both {' and '.join(given)}, must have one")
    label = f"{what}.{given[0]}" if given else what
    parameters = from_json(call[given[0]], label, _unique_keys(label)) if given else {}
    return Call(_name(call, CALL_NAMES, what), _json_object(parameters, label))


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


def _json_object(value: object, what: str) -> dict:
    to_json(value, what)
    return _object(value, what)


def _unique_keys(what: str) -> Callable[[list[tuple[str, object]]], dict]:
    def members(pairs: list[tuple[str, object]]) -> dict:
        found: dict = {}
        for key, value in pairs:
            if key in found:
                raise BadRow(f"{what} has the key {key!r} twice")
            found[key] = value
        return found

    return members


def split_thought(content: str) -> tuple[str, str]:
    """(thought, rest) of an assistant's text that may begin with <think>; "" where there is none.

    The thought ends at the last </think>: thoughts of reasoning models quote tags.
    """
    thought, closed, rest = content.rpartition("</think>")
    opened = thought.lstrip().startswith("<think>")
    if not (opened and closed):
        return "", content.strip()
    return thought.lstrip().removeprefix("<think>").strip(), rest.strip()
