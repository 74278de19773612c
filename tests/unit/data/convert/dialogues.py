"""One dialogue with tools, as turns and as each source writes it."""

import json

from rest_megatron.data.convert.dialogue import Action, Call, Query, Results, Tool
from tests.paths import SHARED

MULTITURN = SHARED / "multiturn"
SCHEMA = {"city": {"type": "string", "description": "Where."}}
FUNCTION = {
    "name": "weather",
    "description": "Now.",
    "parameters": {"type": "object", "properties": SCHEMA, "required": ["city"]},
}
OPENAI_TOOL = {"type": "function", "function": FUNCTION}
TOOL = Tool("weather", "Now.", SCHEMA, ("city",))
TURNS = (
    Query("Paris and Rome?"),
    Action(calls=(Call("weather", {"city": "Paris"}), Call("weather", {"city": "Rome"}))),
    Results(('{"celsius": 21}', "[25]")),
    Action(response="21 and 25."),
    Query("Thanks"),
    Action(response="Welcome."),
)
ARGUMENTS = [{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "weather", "arguments": {"city": "Rome"}}]


def shared_gpt(*conversation, **extra):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in conversation], **extra}


def openai(*turns, **extra):
    return {"messages": [{"role": role, **rest} for role, rest in turns], **extra}


SHAREGPT = shared_gpt(
    ("human", "Paris and Rome?"),
    ("function_call", json.dumps(ARGUMENTS)),
    ("observation", '{"celsius": 21}'),
    ("observation", "[25]"),
    ("gpt", " 21 and 25."),
    ("human", "Thanks"),
    ("gpt", "Welcome."),
    tools=json.dumps([FUNCTION]),
)
OPENAI = openai(
    ("user", {"content": "Paris and Rome?"}),
    (
        "assistant",
        {
            "content": None,
            "tool_calls": [
                {"id": f"c{i}", "type": "function", "function": {**call, "arguments": json.dumps(call["arguments"])}}
                for i, call in enumerate(ARGUMENTS)
            ],
        },
    ),
    ("tool", {"content": '{"celsius": 21}', "tool_call_id": "c0"}),
    ("tool", {"content": "[25]", "tool_call_id": "c1"}),
    ("assistant", {"content": "21 and 25."}),
    ("user", {"content": [{"type": "text", "text": "Thanks"}]}),
    ("assistant", {"content": "Welcome."}),
    tools=[OPENAI_TOOL],
)
TYPED = openai(
    ("user", {"content": [{"type": "text", "value": "Paris and Rome?"}]}),
    ("assistant", {"content": [{"type": "tool_call", "value": json.dumps(call)} for call in ARGUMENTS]}),
    ("tool", {"content": [{"type": "text", "value": '{"celsius": 21}'}]}),
    ("tool", {"content": [{"type": "text", "value": "[25]"}]}),
    ("assistant", {"content": [{"type": "text", "value": "21 and 25."}]}),
    ("user", {"content": [{"type": "text", "value": "Thanks"}]}),
    ("assistant", {"content": [{"type": "text", "value": "Welcome."}]}),
    tools=json.dumps(
        [
            {
                "type": "function",
                "function": {**FUNCTION, "parameters": {"type": "dict", "properties": SCHEMA}, "required": ["city"]},
            }
        ]
    ),
)
