"""ToolACE: the bracket notation of calls, the tools inside the system message, and whole records."""

import json
import random

import pytest

from rest_megatron.data.convert import toolace
from rest_megatron.data.convert.bracket_calls import parse_calls
from rest_megatron.data.convert.dialogue import Action, Call, Query, Results, Tool
from rest_megatron.data.convert.steps import steps, unusable
from rest_megatron.data.rows import BadRow

NAMES = ["Get Hot Topics", "stock/history", "Billboard 200 (Greatest of All Time)", "a.b", "ev", "ev (old)"]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[ev()]", [("ev", {})]),
        ("[]", []),
        (" [ ev ( ) ] ", [("ev", {})]),
        ('[ev(page="2")]', [("ev", {"page": "2"})]),
        ("[ev(page='2', size=5), a.b(x=None)]", [("ev", {"page": "2", "size": 5}), ("a.b", {"x": None})]),
        ('[Get Hot Topics(range="today", top-k=3)]', [("Get Hot Topics", {"range": "today", "top-k": 3})]),
        ('[stock/history(symbol="A,B)]")]', [("stock/history", {"symbol": "A,B)]"})]),
        ("[Billboard 200 (Greatest of All Time)(a=1)]", [("Billboard 200 (Greatest of All Time)", {"a": 1})]),
        ("[ev (old)(a=1), ev(a=2)]", [("ev (old)", {"a": 1}), ("ev", {"a": 2})]),
        ("[Not On Offer(a=1)]", [("Not On Offer", {"a": 1})]),
        ("[ev(a=True, b=false, c=null)]", [("ev", {"a": True, "b": False, "c": None})]),
        ("[ev(a=-1, b=2.50, c=1e3, d=+7, e=.5)]", [("ev", {"a": -1, "b": 2.5, "c": 1000.0, "d": 7, "e": 0.5})]),
        ("[ev(a=[1, [2, 'x']], b={'k': {\"l\": [True]}})]", [("ev", {"a": [1, [2, "x"]], "b": {"k": {"l": [True]}}})]),
        (r'[ev(a="say \"hi\"\n", b=' r"'it\'s', c='\d')]", [("ev", {"a": 'say "hi"\n', "b": "it's", "c": r"\d"})]),
        (r'[ev(a="\u00e9\ud83d\ude00 \x41")]', [("ev", {"a": "é😀 A"})]),
        ('[ev(a="x\ny"),\n ev()]', [("ev", {"a": "x\ny"}), ("ev", {})]),
        ("[ev(filter[name]=1)]", [("ev", {"filter[name]": 1})]),
    ],
)
def test_calls_in_brackets_are_read(text, calls):
    assert parse_calls(text, NAMES) == tuple(Call(name, parameters) for name, parameters in calls)
    assert [json.dumps(c.parameters) for c in parse_calls(text, NAMES)] == [json.dumps(p) for _, p in calls]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ev()", "'['"),
        ("[ev()", "','"),
        ("[ev(", "an argument's name"),
        ("[ev(a)]", "'='"),
        ('[ev("x")]', "an argument's name"),
        ("[ev(a=)]", "a value"),
        ("[ev(a=today)]", "a value"),
        ("[ev(a=1_000)]", "a value"),
        ("[ev(a=2024-01-01)]", "','"),
        ('[ev(a="x)]', "a closed string"),
        ("[ev(a=[1, 2)]", "','"),
        ("[ev(a=[1,])]", "a value"),
        ("[ev(a={1: 2})]", "a closed string"),
        ("[ev(a=1, a=2)]", "each argument of 'ev' once"),
        ("[ev()] and more", "the end of the text"),
        ("[ev(a=" + "[" * 40 + "]" * 40 + ")]", "no deeper nesting than 32"),
        ("[ev(a=" + "9" * 5000 + ")]", "a shorter number"),
        ("[ev(a=ev())]", "a value"),
        ("[ev(a={'k': 1, 'k': 2})]", "each key once"),
        ("[__import__('os').system('x')]", "an argument's name"),
    ],
)
def test_what_is_no_call_is_refused_with_its_place(text, wanted):
    with pytest.raises(BadRow, match="at character") as error:
        parse_calls(text, NAMES)
    assert str(error.value).endswith(f"must have {wanted}")


def literal(value: object, rng: random.Random) -> str:
    """The value in Python's or in JSON's notation."""
    return repr(value) if rng.random() < 0.5 else json.dumps(value, ensure_ascii=rng.random() < 0.5)


def some_value(rng: random.Random, depth: int = 0) -> object:
    texts = ["", "a, b", "f(x=1)]", "it's", 'say "hi"', "é😀\u2028", "back\\slash", "tab\tline\n", "[{", "/"]
    kinds = [rng.choice(texts), rng.randint(-9, 9), rng.random(), True, False, None]
    if depth < 3:
        kinds += [[some_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]]
        kinds += [{rng.choice(texts): some_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}]
    return rng.choice(kinds)


def test_written_calls_are_read_back_whatever_their_values():
    rng = random.Random(0)
    for _ in range(2000):
        calls = [
            (rng.choice(NAMES), {f"k{i}": some_value(rng) for i in range(rng.randint(0, 3))})
            for _ in range(rng.randint(1, 3))
        ]
        written = [f"{n}({', '.join(f'{k}={literal(v, rng)}' for k, v in p.items())})" for n, p in calls]
        text = f"[{', '.join(written)}]"
        assert parse_calls(text, NAMES) == tuple(Call(*call) for call in calls), text


def test_any_text_is_read_or_refused_in_linear_time():
    rng = random.Random(1)
    pieces = ["[", "]", "(", ")", "{", "}", "ev", "=", ",", '"', "'", "\\", "1", " ", "a", "True", ":", "\ud800"]
    for _ in range(3000):
        text = "[" + "".join(rng.choices(pieces, k=rng.randint(0, 40)))
        try:
            calls = parse_calls(text, NAMES)
        except BadRow:
            continue
        assert all(isinstance(call, Call) for call in calls)
    for hostile in ('[ev(a="' + "\\" * 200_001, "[" * 200_000, "[ev(" + " " * 200_000, "[ev(" * 60_000):
        with pytest.raises(BadRow):
            parse_calls(hostile, NAMES)


TOOLS = [
    {
        "name": "Get Hot Topics",
        "description": "Trending topics.",
        "parameters": {
            "type": "dict",
            "properties": {"language": {"description": "Two letters.", "type": "string"}},
            "required": ["language"],
        },
        "required": None,
    },
    {"name": "ev", "description": "Business data.", "parameters": {"type": "dict", "properties": {}}},
]
SYSTEM = (
    "You are given a question and a set of possible functions [if any].\n"
    f"Here is a list of functions in JSON format that you can invoke:\n{json.dumps(TOOLS)}. \n"
    "Should you decide to return the function call(s).\nPut it in the format of [func1(params_name=params_value)]\n"
)


def record(*messages, system=SYSTEM):
    return {"system": system, "conversations": [{"from": speaker, "value": value} for speaker, value in messages]}


@pytest.mark.parametrize(("user", "assistant"), [("user", "assistant"), ("human", "gpt")])
def test_a_record_becomes_tools_and_turns(user, assistant):
    result = '[{"name": "Get Hot Topics", "results": {"topics": []}}]'
    dialogue = toolace.read(
        record(
            (user, "Hot topics?\n"),
            (assistant, '[Get Hot Topics(language="en"), ev()]'),
            ("tool", result),
            (assistant, "[Note] None today (really)."),
            (user, "And?"),
            (assistant, "[None today (really)]"),
        )
    )
    assert dialogue.tools == (
        Tool(
            "Get Hot Topics",
            "Trending topics.",
            {"language": {"description": "Two letters.", "type": "string"}},
            ("language",),
        ),
        Tool("ev", "Business data.", {}),
    )
    assert dialogue.turns == (
        Query("Hot topics?"),
        Action(calls=(Call("Get Hot Topics", {"language": "en"}), Call("ev", {}))),
        Results((result,)),
        Action(response="[Note] None today (really)."),
        Query("And?"),
        Action(response="[None today (really)]"),
    )
    assert dialogue.system == ""


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record(("user", "x"), ("assistant", "[ev(a=]")), "the calls have ']' at character 6"),
        (record(("user", "x"), ("assistant", "[nobody(a=b)]")), "the calls have 'b\\)]' at character 10"),
        (record(("user", "x"), ("assistant", "[ev()] Done.")), "must have the end of the text"),
        (record(("user", "x"), ("judge", "y")), "from 'judge'"),
        (record(("user", "x")), "no action of the assistant"),
        (record(("user", " "), ("assistant", "y")), r"conversations\[0\]: field 'value' must not be blank"),
        (record(("user", "x"), ("assistant", "y"), system="No tools here."), "no JSON list of tools"),
        (record(("user", "x"), ("assistant", "y"), system='invoke:\n[{"name": '), "not valid JSON"),
        (record(("user", "x"), ("assistant", "y"), system="invoke:\n" + "[" * 100_000), "not valid JSON"),
        ({"conversations": []}, "'system' is missing"),
        ({"system": SYSTEM, "conversations": "x"}, "'conversations' is str 'x', must be a list"),
        ({"system": SYSTEM, "conversations": [1]}, r"conversations\[0\] is int 1"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(broken, reason):
    with pytest.raises(BadRow, match=reason):
        toolace.read(broken)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sure: [ev(a=1)]", "its text holds a call that is not read as one"),
        ("Sure: [ ev (a=1)", "its text holds a call that is not read as one"),
        ("[Get Hot Topics] is a tool, ev(a=1) too", ""),
        ("[Not on offer (a=1)]", ""),
    ],
)
def test_a_text_with_a_call_in_it_is_not_learnt(text, reason):
    (step,) = steps(toolace.read(record(("user", "x"), ("assistant", text))))
    assert step.action == Action(response=text)
    assert unusable(step) == reason
