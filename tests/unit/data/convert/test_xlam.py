"""xLAM-60k: one question a record, its calls and tools as JSON strings."""

import json

import pytest

from rest_megatron.data.convert import xlam
from rest_megatron.data.convert.dialogue import Action, Call, Query, Tool
from rest_megatron.data.rows import BadRow

TOOLS = [
    {
        "name": "live_giveaways_by_type",
        "description": "Giveaways.",
        "parameters": {
            "type": {"description": "The kind.", "type": "str, optional", "default": "game"},
            "properties": {"description": "An unlucky name.", "type": "int"},
        },
    }
]
ANSWERS = [
    {"name": "live_giveaways_by_type", "arguments": {"type": "beta"}},
    {"name": "live_giveaways_by_type", "arguments": {"type": "game", "properties": 3}},
]


def record(answers=ANSWERS, tools=TOOLS, dump=json.dumps):
    return {"id": 7, "query": "Where are giveaways?\n", "answers": dump(answers), "tools": dump(tools)}


@pytest.mark.parametrize("dump", [json.dumps, lambda value: value], ids=["JSON strings", "lists"])
def test_a_record_becomes_one_question_and_its_calls(dump):
    dialogue = xlam.read(record(dump=dump))
    # Parameters called "type" and "properties" are parameters, not the frame of a JSON schema.
    assert dialogue.tools == (Tool("live_giveaways_by_type", "Giveaways.", TOOLS[0]["parameters"]),)
    assert dialogue.turns == (
        Query("Where are giveaways?"),
        Action(calls=tuple(Call(answer["name"], answer["arguments"]) for answer in ANSWERS)),
    )
    assert dialogue.id == "7"


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        ({"name": "f", "arguments": {"a": 1}}, {"a": 1}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": '{"a": 1}'}, {"a": 1}),
        ({"name": "f", "arguments": ""}, {}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f"}, {}),
        ({"type": "function", "function": {"name": "f", "arguments": '{"a": [true, null]}'}}, {"a": [True, None]}),
        ({"name": "f", "arguments": None, "parameters": {"a": 1}}, {"a": 1}),
    ],
)
def test_every_spelling_of_a_call_is_read(call, parameters):
    assert xlam.read(record([call])).turns[1] == Action(calls=(Call("f", parameters),))


def test_no_call_at_all_is_a_refusal_in_words():
    assert xlam.read(record([])).turns[1] == Action(response=xlam.REFUSAL)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answers": None}, "'answers' is missing"),
        ({"tools": None}, "'tools' is missing"),
        ({"query": ""}, "'query' is str '', must not be blank"),
        ({"answers": "[{"}, "answers is not valid JSON"),
        ({"answers": "[" * 100_000}, "answers is not valid JSON"),
        ({"answers": "[3]"}, r"answers\[0\] is int 3, must be an object"),
        ({"answers": '[{"name": "f", "arguments": [1]}]'}, r"answers\[0\].arguments is list \[1\], must be an object"),
        ({"answers": '[{"name": "f", "arguments": "{"}]'}, r"answers\[0\].arguments is not valid JSON"),
        ({"answers": '[{"name": "f", "arguments": {"a": 1}, "parameters": {"b": 1}}]'}, "arguments and parameters"),
        ({"answers": '[{"name": "f", "arguments": {"a": 1, "a": 2}}]'}, "answers has the key 'a' twice"),
        ({"answers": [{"name": "f", "arguments": '{"a": {"b": 1, "b": 1}}'}]}, "arguments has the key 'b' twice"),
        ({"answers": [{"name": "f", "arguments": {"a": b"x"}}]}, r"answers\[0\].arguments is not JSON"),
        ({"tools": [{"name": "f", "parameters": {"a": {"default": {1}}}}]}, r"tools\[0\].parameters is not JSON"),
        ({"id": "a\ud800"}, "'id' has the lone surrogate"),
        ({"answers": '[{"arguments": {}}]'}, r"answers\[0\]: field 'name' is missing"),
        ({"answers": '[{"name": " "}]'}, r"answers\[0\]: field 'name' must not be blank"),
        ({"tools": '{"name": "f"}'}, "tools is dict .*, must be a list"),
        ({"tools": '[{"name": 3}]'}, r"tools\[0\]: field 'name' is int 3"),
        ({"tools": '[{"name": "f", "description": 3}]'}, r"tools\[0\].description is int 3"),
        ({"tools": '[{"name": "f", "parameters": [1]}]'}, r"tools\[0\].parameters is list"),
        ({"tools": '[{"name": "f", "required": "a"}]'}, r"tools\[0\].required is str 'a'"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(changes, reason):
    with pytest.raises(BadRow, match=reason):
        xlam.read(record() | changes)


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ({"properties": {"a": {"type": "int"}}}, ["a"]),
        ({"properties": {"a": {}}, "required": ["a"]}, ["a"]),
        ({"properties": {"a": True}, "required": []}, ["a"]),
        ({"properties": {}}, []),
        ({"type": ["object", "null"], "properties": {"a": {"type": "int"}}}, ["a"]),
        ({"type": "dict", "properties": {"a": {"type": "int"}}}, ["a"]),
        ({"type": "object"}, []),
        ({"properties": {"type": "int", "description": "A place."}}, ["properties"]),
        ({"properties": {"type": "int"}, "b": {"type": "int"}}, ["properties", "b"]),
        ({"properties": "where", "b": {}}, ["properties", "b"]),
        ({"type": {"type": "str"}, "properties": {"a": {}}}, ["type", "properties"]),
        ({"a": {"type": "int"}}, ["a"]),
    ],
)
def test_a_schema_is_told_from_parameters(parameters, names):
    (tool,) = xlam.read(record(tools=[{"name": "f", "parameters": parameters}])).tools
    assert list(tool.parameters) == names
