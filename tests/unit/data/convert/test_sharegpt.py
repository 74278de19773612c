"""Dialogues of several turns: ShareGPT, OpenAI messages and typed content give the same turns and the same rows."""

import json

import pytest

from rest_megatron.data.convert import messages, sharegpt
from rest_megatron.data.convert.dialogue import Action, Call, Dialogue, Query, Results
from rest_megatron.data.convert.steps import steps, unusable
from rest_megatron.data.rows import BadRow
from tests.unit.data.convert.dialogues import (
    ARGUMENTS,
    FUNCTION,
    MULTITURN,
    OPENAI,
    OPENAI_TOOL,
    SHAREGPT,
    TOOL,
    TURNS,
    TYPED,
    openai,
    shared_gpt,
)


@pytest.mark.parametrize(
    ("read", "record"),
    [(sharegpt.read, SHAREGPT), (messages.read, OPENAI), (messages.read, TYPED)],
    ids=["sharegpt", "openai", "typed"],
)
def test_every_source_gives_the_same_dialogue(read, record):
    assert read(record) == Dialogue((TOOL,), TURNS)
    assert read({**record, "id": 5}).id == "5"


@pytest.mark.parametrize(
    ("read", "record"),
    [
        (sharegpt.read, shared_gpt(("system", "Be brief."), ("human", "q"), ("gpt", "<think>\nHm.\n</think>\n\na"))),
        (sharegpt.read, shared_gpt(("user", "q"), ("assistant", "<think> Hm. </think> a"), system="Be brief.")),
        (
            messages.read,
            openai(
                ("system", {"content": "Be brief."}),
                ("user", {"content": "q"}),
                ("assistant", {"content": "a", "reasoning_content": "Hm."}),
            ),
        ),
        (
            messages.read,
            openai(
                ("developer", {"content": "Be brief."}),
                ("user", {"content": "q"}),
                ("assistant", {"content": "<think>Hm.</think>a"}),
            ),
        ),
        (
            messages.read,
            openai(
                ("system", {"content": [{"type": "text", "value": "Be brief."}]}),
                ("user", {"content": "q"}),
                ("assistant", {"content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "a"}]}),
            ),
        ),
    ],
)
def test_thoughts_and_system_messages_are_kept_apart(read, record):
    assert read(record) == Dialogue((), (Query("q"), Action(response="a", thought="Hm.")), system="Be brief.")


def test_a_thought_that_quotes_tags_ends_at_the_last_one():
    value = "<think>Not </think> yet.</think>\n" + json.dumps(ARGUMENTS[0])
    dialogue = sharegpt.read(shared_gpt(("human", "q"), ("function_call", value)))
    action = dialogue.turns[1]
    assert action == Action(calls=(Call("weather", {"city": "Paris"}),), thought="Not </think> yet.")


def test_messages_of_one_turn_become_one_and_a_text_after_unanswered_calls_stays_apart():
    call = ("function_call", json.dumps(ARGUMENTS[0]))
    record = shared_gpt(
        ("human", "q"), ("gpt", "Let me look."), call, call, ("gpt", "Which street?"), ("gpt", "Which?")
    )
    paris = Call("weather", {"city": "Paris"})
    assert sharegpt.read(record).turns == (
        Query("q"),
        Action(calls=(paris, paris), response="Let me look."),
        Action(response="Which street?\nWhich?"),
    )


@pytest.mark.parametrize(
    ("read", "record", "reason"),
    [
        (sharegpt.read, shared_gpt(("human", "q"), ("robot", "a")), r"conversations\[1\] is from 'robot'"),
        (
            sharegpt.read,
            shared_gpt(("human", "q"), ("gpt", " ")),
            r"conversations\[1\]: field 'value' must not be blank",
        ),
        (sharegpt.read, shared_gpt(("human", "q"), ("function_call", "f()")), r"conversations\[1\] is not valid JSON"),
        (
            sharegpt.read,
            shared_gpt(("human", "q"), ("function_call", '{"name": "f", "arguments": {"a": 1, "a": 2}}')),
            r"conversations\[1\] has the key 'a' twice",
        ),
        (sharegpt.read, {**shared_gpt(("human", "q"), ("gpt", "a")), "id": "\ud800"}, "'id' has the lone surrogate"),
        (sharegpt.read, shared_gpt(("human", "q")), "no action of the assistant"),
        (sharegpt.read, shared_gpt(("human", "q"), ("gpt", "a"), tools="[{"), "tools is not valid JSON"),
        (sharegpt.read, shared_gpt(("human", "q"), ("gpt", "a"), system=3), "'system' is int 3"),
        (sharegpt.read, {"conversations": [{"from": "human"}]}, r"conversations\[0\]: field 'value' is missing"),
        (messages.read, {"messages": [3]}, r"messages\[0\] is int 3"),
        (messages.read, {}, "'messages' is missing"),
        (messages.read, openai(("judge", {"content": "x"})), r"messages\[0\] has role 'judge'"),
        (messages.read, openai(("user", {"content": ""})), r"messages\[0\] of the user holds nothing"),
        (messages.read, openai(("assistant", {"content": None})), r"messages\[0\] of the assistant holds nothing"),
        (messages.read, openai(("user", {"content": 3})), r"messages\[0\].content is int 3"),
        (messages.read, openai(("user", {"content": [{"type": "image_url"}]})), r"messages\[0\] has the content dict"),
        (
            messages.read,
            openai(("user", {"content": [{"type": "reasoning", "value": "x"}]})),
            "type 'reasoning', must be text",
        ),
        (messages.read, openai(("assistant", {"content": "x", "reasoning_content": [1]})), "reasoning_content is list"),
        (messages.read, openai(("assistant", {"tool_calls": 3})), r"messages\[0\].tool_calls is int 3"),
    ],
)
def test_a_record_that_cannot_be_read_says_where_and_why(read, record, reason):
    with pytest.raises(BadRow, match=reason):
        read(record)


@pytest.mark.skipif(not MULTITURN.is_dir(), reason="the real rows are not beside the checkout")
def test_real_typed_rows_keep_their_calls_thoughts_and_texts():
    records = [json.loads(line) for line in (MULTITURN / "llamafactory_reason_tool_use_15.jsonl").open()]
    for record in records:
        said = [m["content"] for m in record["messages"] if m["role"] == "assistant"]
        actions = [step.action for step in steps(messages.read(record))]
        assert len(actions) == len(said)
        for action, parts in zip(actions, said, strict=True):
            wanted = [json.loads(part["value"]) for part in parts if part["type"] == "tool_call"]
            assert [{"name": c.name, "arguments": c.parameters} for c in action.calls] == wanted
            assert action.thought == parts[0]["value"].strip()
            assert action.response == "".join(p["value"] for p in parts if p["type"] == "text").strip()


HERMES_CALLS = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in ARGUMENTS)
CALLS = TURNS[1].calls


def sources(text):
    """The records of each source whose assistant says `text`."""
    return [
        (sharegpt.read, shared_gpt(("human", "q"), ("gpt", text), tools=json.dumps([FUNCTION]))),
        (messages.read, openai(("user", {"content": "q"}), ("assistant", {"content": text}), tools=[OPENAI_TOOL])),
        (
            messages.read,
            openai(
                ("user", {"content": "q"}),
                ("assistant", {"content": [{"type": "text", "value": text}]}),
                tools=[OPENAI_TOOL],
            ),
        ),
    ]


@pytest.mark.parametrize("source", range(3), ids=["sharegpt", "openai", "typed"])
@pytest.mark.parametrize(
    ("text", "action"),
    [
        (HERMES_CALLS, Action(CALLS)),
        (HERMES_CALLS.replace("\n", ""), Action(CALLS)),
        (HERMES_CALLS.replace("arguments", "parameters"), Action(CALLS)),
        (f"<think>\nTwo <tool_call> cities.\n</think>\n\n{HERMES_CALLS}", Action(CALLS, "", "Two <tool_call> cities.")),
        (f"One moment.\n{HERMES_CALLS}", Action(CALLS, "One moment.")),
        (HERMES_CALLS.replace("Rome", "</tool_call>"), Action((CALLS[0], Call("weather", {"city": "</tool_call>"})))),
    ],
)
def test_calls_written_as_text_are_calls(source, text, action):
    read, record = sources(text)[source]
    assert read(record).turns == (Query("q"), action)


@pytest.mark.parametrize("source", range(3), ids=["sharegpt", "openai", "typed"])
@pytest.mark.parametrize(
    "text",
    [
        HERMES_CALLS[:-5],
        "<tool_call>\n{'name': 'weather'}\n</tool_call>",
        "<tool_call>weather(city)</tool_call>",
        "<tool_call></tool_call>",
        '<tool_call>\n{"name": "weather", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": 1, "city": 2}}\n</tool_call>',
        "The tag <tool_call> is ours.",
    ],
)
def test_a_text_with_a_call_that_cannot_be_read_is_not_learnt(source, text):
    read, record = sources(text)[source]
    (step,) = steps(read(record))
    assert step.action == Action(response=text)
    assert unusable(step) == "its text holds a call that is not read as one"
    after = Dialogue((TOOL,), (Query("q"), step.action, Query("q"), Action(response="a")))
    assert [unusable(step) for step in steps(after)][1] == "follows a text that holds a call that is not read as one"


def test_several_system_messages_are_joined():
    turns = (("system", "Be brief."), ("human", "q"), ("system", "It is noon."), ("gpt", "a"))
    assert sharegpt.read(shared_gpt(*turns)).system == "Be brief.\n\nIt is noon."
    assert sharegpt.read(shared_gpt(*turns, system="Be kind.")).system == "Be kind.\n\nBe brief.\n\nIt is noon."


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"celsius": 21}, {"celsius": 25}], '[{"celsius": 21}, {"celsius": 25}]'),
        ([{"type": "hotel", "stars": 3}], '[{"type": "hotel", "stars": 3}]'),
        (["a", 1], '["a", 1]'),
        ({"a": None}, '{"a": null}'),
        ([{"type": "text", "text": "21"}, {"type": "text", "value": "25"}], "21\n25"),
        ([], ""),
    ],
)
def test_a_tools_result_may_be_any_json(content, text):
    record = openai(("user", {"content": "q"}), ("assistant", {"content": "a"}), ("tool", {"content": content}))
    assert messages.read(record).turns[2] == Results((text,))


@pytest.mark.parametrize("content", [[{"a": b"x"}], {"a": {1}}, 3 + 4j])
def test_a_tools_result_that_is_no_json_is_refused(content):
    record = openai(("user", {"content": "q"}), ("assistant", {"content": "a"}), ("tool", {"content": content}))
    with pytest.raises(BadRow, match=r"messages\[2\].content is not JSON"):
        messages.read(record)
