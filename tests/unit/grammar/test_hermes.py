"""Answers in the Hermes format that Qwen models use: regions and what the parser reads."""

import pytest

from rest_megatron.grammar import HERMES
from rest_megatron.method.regions import label_bytes
from rest_megatron.reward.parse import Call, parse
from tests.unit.grammar.answers import marked

CALL = '<tool_call>\n{"name": "¦n|f¦f|", "arguments": ¦p|{"x": 1}¦f|}\n</tool_call>'
GOOD_CALL = Call("f", {"x": "1"})
HAND_LABELLED = {
    "thought and call": "f|<think>¦c|\nt\n¦f|</think>\n\n" + CALL,
    "empty thought": "f|<think>¦c|\n\n¦f|</think>\n\n" + CALL,
    "no thought": "f|" + CALL,
    "several blocks": "f|<think>¦c|t¦f|</think>\n" + CALL + "\n" + CALL + CALL,
    "response": "f|<think>¦c|t¦f|</think>\n\n¦c|Hello, é.\n Bye. ",
    "response without a thought": "c| Hello.\n",
    "response and call": "f|<think>¦c|t¦f|</think>\n\n¦c|Let me  see.¦f|\n" + CALL,
    "response around calls": "c|One¦f| " + CALL + " ¦c|two¦f|\n" + CALL + "\n¦c|three\n",
    "white space around": "f|\n " + CALL + "\n ",
    "parameters": 'f|<tool_call>{"parameters": ¦p|{"name": "inner"}¦f|, "name": "¦n|f¦f|"}</tool_call>',
    "two calls in a block": 'f|<tool_call>{"name": "¦n|f¦f|", "arguments": ¦p|{}¦f|} {"name": "¦n|g¦f|"}</tool_call>',
    "tags in strings": 'f|<think>¦c|t¦f|</think>\n<tool_call>{"name": "¦n|</tool_call>¦f|", "arguments": '
    '¦p|{"<tool_call>": "</think>"}¦f|}</tool_call>',
    "tags quoted in the thought": "f|<think>¦c| so <tool_call>{ </think> then </tool_call> ¦f|</think>\n" + CALL,
    "tags of toolrl": "c|<response> Hi </response>",
    "a think tag in the text": "c|Use <think> and </think>.",
    "unclosed thought": "f|<think>¦c| t " + CALL.replace("¦n|", "").replace("¦p|", "").replace("¦f|", ""),
    "cut in the thought": "f|<think>¦c| t </thi",
    "cut in a name": 'f|<think>¦c|t¦f|</think>\n<tool_call>\n{"name": "¦n|get_we',
    "cut in a tag": "c|Hm <tool_ca",
    "broken call": 'f|<tool_call>\n{"name": "¦n|f¦f|", "arguments": ¦p|oops¦f|}\n</tool_call>',
    "no JSON": "f|<tool_call>\n¦c|f(x=1)¦f|\n</tool_call>",
}


@pytest.mark.parametrize("template", HAND_LABELLED.values(), ids=HAND_LABELLED)
def test_bytes_are_labelled_as_by_hand(template):
    text, expected = marked(template)
    assert label_bytes(text, HERMES)[: len(text)].tolist() == expected


@pytest.mark.parametrize(
    "template",
    [
        "c|\nt\n¦f|</think>\n\n" + CALL,
        "c|t¦f|</think>¦c|Hello",
        "c|t </think> quoted¦f|</think>\n" + CALL,
        "c|no end <tool_call>\n{",
        "f|</think>\n" + CALL,
    ],
)
def test_an_answer_to_a_prompt_that_opened_the_thought_begins_inside_it(template):
    text, expected = marked(template)
    assert label_bytes(text, HERMES, think_open=True)[: len(text)].tolist() == expected


BLOCK = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "text, calls, response",
    [
        ("<think>\nt\n</think>\n\n" + BLOCK, (GOOD_CALL,), False),
        ("<think>\n\n</think>\n\n" + BLOCK, (GOOD_CALL,), False),
        (BLOCK + "\n" + BLOCK, (GOOD_CALL, GOOD_CALL), False),
        (BLOCK.replace("\n", "") + BLOCK, (GOOD_CALL, GOOD_CALL), False),
        (BLOCK.replace("arguments", "parameters"), (GOOD_CALL,), False),
        ('<tool_call>\n{\n "name": "f",\n "arguments": {"x": 1}\n}\n</tool_call>', (GOOD_CALL,), False),
        ("<think> t </think> Hello.", (), True),
        ("Hello.", (), True),
        ("<think> the <tool_call> tag </think>\nI will call.\n" + BLOCK, (GOOD_CALL,), True),
        ("<think> t </think>\n", (), False),
        ("", (), False),
    ],
)
def test_well_formed_answers(text, calls, response):
    answer = parse(text.encode(), HERMES)
    assert answer.problems == ()
    assert (answer.calls, answer.tool_call, answer.response) == (calls, bool(calls), response)


@pytest.mark.parametrize(
    "text, calls, problems",
    [
        ("<think> t", (), ("unclosed_think",)),
        ("<think> t " + BLOCK, (), ("unclosed_think",)),
        ("<think> a <think> b </think> Hi", (), ("tag_in_think",)),
        ("Hm. <think> t </think> Hi", (), ("tag_in_response",)),
        ("t </think> Hi", (), ("tag_in_response",)),
        ("Hi </tool_call>", (), ("tag_in_response",)),
        (BLOCK + "\nDone.", (GOOD_CALL,), ("wrong_order",)),
        ("So. " + BLOCK + "\nDone.", (GOOD_CALL,), ("repeated_response", "wrong_order")),
        ("<tool_call>\n" + '{"name": "f", "arguments": {"x": 1}}', (), ("unclosed_tool_call",)),
        ("<tool_call>\n</tool_call>", (), ("empty_tool_call",)),
        (BLOCK.replace("\n</", '\n{"name": "f", "arguments": {"x": 1}}\n</'), (GOOD_CALL,) * 2, ("several_calls",)),
        (BLOCK.replace("\n</", "\nand\n</"), (GOOD_CALL,), ("text_in_tool_call",)),
        (BLOCK.replace("1}}", "1}"), (None,), ("bad_json",)),
        (BLOCK.replace('"f"', "null"), (None,), ("bad_call",)),
        (BLOCK.replace('{"n', '{"id": 0, "n'), (GOOD_CALL,), ("unknown_key",)),
        (BLOCK * 65, (), ("too_many_calls",)),
        (BLOCK * 257, (), ("wrong_order", "tag_in_response", "too_many_calls")),
    ],
)
def test_broken_format(text, calls, problems):
    answer = parse(text.encode(), HERMES)
    assert (answer.calls, answer.problems) == (calls, problems)


def test_a_thought_that_the_prompt_opened_needs_no_tag():
    answer = parse(b"t </think>\n" + BLOCK.encode(), HERMES, think_open=True)
    assert (answer.calls, answer.response, answer.problems) == ((GOOD_CALL,), False, ())
    assert parse(b"t", HERMES, think_open=True).problems == ("unclosed_think",)
