"""Hammer: masked rows with their blocks and fences, test sets, and HammerBench."""

import json

import pytest

from rest_megatron.data.convert import hammer
from rest_megatron.data.convert.dialogue import Action, Call, Query, Tool
from rest_megatron.data.convert.steps import steps, unusable
from rest_megatron.data.convert.xlam import REFUSAL
from rest_megatron.data.rows import BadRow
from tests.paths import SHARED

MULTITURN = SHARED / "multiturn"
TOOLS = [{"name": "_ErVZ.BD", "description": "An image.", "parameters": {".67xDKY": {"type": "int", "default": 40}}}]


def masked(output, query="Which image?", tools=TOOLS):
    blocks = f"[BEGIN OF AVAILABLE TOOLS]\n{json.dumps(tools)}\n[END OF AVAILABLE TOOLS]\n\n[BEGIN OF QUERY]\n{query}\n"
    return {"instruction": f"Some task.\n\n{blocks}[END OF QUERY]\n\n", "input": "", "output": output}


@pytest.mark.parametrize("fence", ["```\n{}\n```", "```json\n{}\n```", "{}"])
def test_a_masked_row_becomes_its_query_and_calls(fence):
    output = fence.format('[{"name": "_ErVZ.BD", "arguments": {".67xDKY": 7}}]')
    dialogue = hammer.read(masked(output))
    assert dialogue.tools == (Tool("_ErVZ.BD", "An image.", {".67xDKY": {"type": "int", "default": 40}}),)
    assert dialogue.turns == (Query("Which image?"), Action(calls=(Call("_ErVZ.BD", {".67xDKY": 7}),)))


def test_an_empty_list_is_a_refusal():
    assert hammer.read(masked("```\n[]\n```")).turns[1] == Action(response=REFUSAL)


def test_a_test_set_row_names_the_tool_under_tool():
    tools = [{**TOOLS[0], "required": [".67xDKY"]}]
    dialogue = hammer.read({"query": "q", "tools": tools, "answers": [{"tool": "_ErVZ.BD", "parameters": {"a": "b"}}]})
    assert dialogue.tools[0].required == (".67xDKY",)
    assert dialogue.turns[1] == Action(calls=(Call("_ErVZ.BD", {"a": "b"}),))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (masked("```\nI cannot.\n```"), "answers is not valid JSON"),
        (masked(""), "'output' is str ''"),
        ({"instruction": "no blocks", "output": "[]"}, r"no block \[BEGIN OF AVAILABLE TOOLS\]"),
        (masked("[]", query=""), r"no block \[BEGIN OF QUERY\]"),
        ({"output": "[]"}, "'instruction' is missing"),
    ],
)
def test_a_row_that_cannot_be_read_says_why(row, reason):
    with pytest.raises(BadRow, match=reason):
        hammer.read(row)


@pytest.mark.skipif(not MULTITURN.is_dir(), reason="the real rows are not beside the checkout")
def test_real_masked_rows_are_read():
    rows = json.loads((MULTITURN / "hammer_masked_example.json").read_text())
    actions = [hammer.read(row).turns[1] for row in rows]
    for row, action in zip(rows, actions, strict=True):
        wanted = json.loads(row["output"].strip("`\n"))
        assert [{"name": call.name, "arguments": call.parameters} for call in action.calls] == wanted
    assert [len(action.calls) for action in actions] == [0, 1, 2, 4, 1]


@pytest.mark.skipif(not MULTITURN.is_dir(), reason="the real rows are not beside the checkout")
def test_hammerbench_gives_a_row_per_call_and_none_for_the_questions_between():
    """Its calls have no results: the assistant's question after one answers neither the user nor a tool."""
    (record,) = json.loads((MULTITURN / "hammerbench_en_examples.json").read_text())
    dialogue = hammer.read(record)
    assert dialogue.id == "Based_0_3" and len(dialogue.tools) == 5
    usable = [step for step in steps(dialogue) if not unusable(step)]
    assert [step.action.calls[0].parameters for step in usable] == [
        {},
        {"city": "Guangzhou"},
        {"city": "Guangzhou", "plate_number": "Yue B67890"},
    ]
    assert [len(step.history) for step in usable] == [1, 4, 7]
