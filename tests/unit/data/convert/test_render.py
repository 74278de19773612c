"""From a dialogue's actions to rows: the history, the instruction, the wanted answer, in every grammar."""

import json
import re

import pyarrow.parquet as pq
import pytest

from rest_megatron.data.convert.dialogue import Action, Call, Dialogue, Query, Results, Tool
from rest_megatron.data.convert.render import ground_truth, native_row, openai_tool, rlla_history, rlla_instruction
from rest_megatron.data.convert.steps import steps, unusable
from rest_megatron.grammar import HERMES, LLAMA3, Kind, split
from rest_megatron.reward.paper import parse_ground_truth
from tests.unit.data.convert.dialogues import (
    MULTITURN,
    OPENAI_TOOL,
    TOOL,
    TURNS,
)


def test_every_action_becomes_a_step_with_all_that_came_before_it():
    found = list(steps(Dialogue((TOOL,), TURNS)))
    assert [(step.number, step.history, step.action) for step in found] == [
        (0, TURNS[:1], TURNS[1]),
        (1, TURNS[:3], TURNS[3]),
        (2, TURNS[:5], TURNS[5]),
    ]
    assert not any(unusable(step) for step in found)


@pytest.mark.parametrize(
    ("tools", "turns", "reason"),
    [
        ((), TURNS[:2], "no tools on offer"),
        ((TOOL,), (Action(response="Hello!"), *TURNS[:2]), "answers neither the user nor a tool"),
        ((TOOL,), (Query("q"), Action(calls=(Call("weather ", {}),))), "calls a tool that is not on offer"),
    ],
)
def test_an_action_nothing_can_be_learnt_from_says_why(tools, turns, reason):
    assert unusable(next(steps(Dialogue(tools, turns)))) == reason


def test_the_history_is_written_as_in_toolrls_rows():
    turns = (*TURNS[:3], Action(response="21 and 25.", thought="Both known."), *TURNS[4:5])
    assert rlla_history(turns) == (
        "**Dialogue Records History**\n"
        "<user> Paris and Rome? </user>\n\n"
        "<think> I should use the appropriate tool with proper parameters to respond to the user's need. </think>\n"
        "<tool_call>\n"
        '{"name": "weather", "parameters": {"city": "Paris"}}\n'
        '{"name": "weather", "parameters": {"city": "Rome"}}\n'
        "</tool_call>\n"
        '<obs> [{"celsius": 21}, [25]] </obs>\n\n'
        "<think> Both known. </think>\n"
        "<response> 21 and 25. </response>\n\n"
        "<user> Thanks </user>"
    )


def test_results_that_are_no_json_stand_below_each_other():
    assert rlla_history((Query("q"), Results(("sunny", "{}")))).endswith("<obs> sunny\n{} </obs>")


def test_a_call_with_a_response_is_one_answer():
    action = Action(calls=(Call("weather", {"city": "Ü"}),), response="One moment.")
    assert ground_truth(action).endswith(
        '<tool_call>\n{"name": "weather", "parameters": {"city": "Ü"}}\n</tool_call>\n'
        "<response> One moment. </response>"
    )
    truth = parse_ground_truth(ground_truth(action))
    assert truth.response and truth.calls[0].parameters == {"city": '"\\u00dc"'}


@pytest.mark.skipif(not MULTITURN.is_dir(), reason="the real rlla rows are not beside the checkout")
def test_the_instruction_is_that_of_the_real_rows():
    """Every real instruction is rebuilt from its own tools, byte for byte."""
    paths = [MULTITURN.parent / name for name in ("rlla_train_sample.parquet", "test.parquet")]
    instructions = [row["prompt"][0]["content"] for path in paths for row in pq.read_table(path).to_pylist()]
    assert len(instructions) == 237
    for instruction in instructions:
        listed = instruction.split("following tools:\n", 1)[1].split("\n\n**Steps for Each Turn**")[0]
        tools = re.findall(r"^\d+\. Name: (.*)\nDescription: ((?:.|\n)*?)\nParameters: (\{.*\})$", listed, re.MULTILINE)
        rebuilt = [Tool(name, description, json.loads(parameters)) for name, description, parameters in tools]
        assert rlla_instruction(rebuilt) == instruction


@pytest.mark.parametrize(
    ("answer_format", "grammar", "thoughts"), [("hermes", HERMES, True), ("llama3", LLAMA3, False)]
)
def test_native_rows_hold_messages_that_the_grammar_reads_back(answer_format, grammar, thoughts):
    action = Action(TURNS[1].calls, "One moment.", "Two cities.")
    turns = (TURNS[0], action, *TURNS[2:])
    for step in steps(Dialogue((TOOL,), turns, system="Be brief.")):
        row = native_row(step, answer_format, 0, "x")
        roles = ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
        expected = roles[: {0: 2, 1: 5, 2: 7}[step.number]]
        assert [message["role"] for message in row["prompt"]] == expected
        assert json.loads(row["tools"]) == [OPENAI_TOOL] == [openai_tool(TOOL)]
        assert row["reward_model"]["ground_truth"] == ground_truth(step.action)
    text = row["prompt"][2]["content"].encode()
    sections = split(text, grammar)
    bodies = {kind: [text[s.body_start : s.body_end].strip() for s in sections if s.kind is kind] for kind in Kind}
    calls = [json.loads(text[c.start : c.end]) for section in sections for c in section.calls]
    assert bodies[Kind.THINK] == ([b"Two cities."] if thoughts else [])
    assert bodies[Kind.RESPONSE] == [b"One moment."]
    assert [call["name"] for call in calls] == ["weather", "weather"]
    assert [call.get("arguments", call.get("parameters"))["city"] for call in calls] == ["Paris", "Rome"]


def test_a_tool_that_does_not_say_what_it_requires_stays_so():
    assert "required" not in openai_tool(Tool("f", "", {}))["function"]["parameters"]


def test_calls_are_written_with_their_own_letters():
    action = Action((Call("météo", {"ville": "Łódź"}),))
    turns = (Query("q"), action, Results(("1",)), Action(response="a"))
    step = list(steps(Dialogue((TOOL,), turns)))[1]
    native = [native_row(step, answer_format, 0, "x")["prompt"] for answer_format in ("hermes", "llama3")]
    for history in (rlla_history(turns), *native):
        assert "Łódź" in str(history) and "météo" in str(history)
