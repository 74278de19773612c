"""Answers in ToolRL's format, written down in a line."""

import json

THOUGHT = "<think> t </think>\n"


def line(name: str, /, **parameters) -> str:
    """The JSON of one call."""
    return json.dumps({"name": name, "parameters": parameters})


def calls(*lines: str) -> str:
    """An answer that makes these calls."""
    return THOUGHT + "<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"
