"""Answers in the format of Llama 3: regions and what the parser reads."""

import pytest

from rest_megatron.grammar import LLAMA3
from rest_megatron.method.regions import label_bytes, label_regions
from rest_megatron.reward.parse import Call, parse
from tests.unit.grammar.answers import C, F, N, P, marked

CALL = '{"name": "¦n|f¦f|", "parameters": ¦p|{"x": 1}¦f|}'
HAND_LABELLED = {
    "tagged call": "f|<|python_tag|>" + CALL,
    "bare call": "f|" + CALL,
    "white space around": "f| \n" + CALL + " \n",
    "semicolons": "f|<|python_tag|>" + CALL + "; " + CALL + ";" + CALL,
    "lines": "f|" + CALL + "\n" + CALL + "\n\n" + CALL + "\n",
    "parameters first": 'f|{"arguments": ¦p|{"a": [{"name": "x"}]}¦f|, "name": "¦n|f¦f|"}',
    "response": "c| Hello; it is <think> {} \n",
    "response in JSON": 'c|{"temperature": 20, "unit": "C"}',
    "response, then a call": "c| I look it up.¦f|\n<|python_tag|>" + CALL,
    "a call inside text": 'c|Use {"name": "f", "parameters": {}}',
    "tags in strings": 'f|{"name": "¦n|<|python_tag|>¦f|", "parameters": ¦p|{"a": "; {\\"name\\": 1};\\n"}¦f|}; '
    + CALL,
    "text after a call": "f|" + CALL + " ¦c|Done; ",
    "two semicolons": "f|" + CALL + ";¦c|; ¦f|" + CALL,
    "a tag between calls": "f|<|python_tag|>" + CALL + "; <|python_tag|>" + CALL,
    "code": 'f|<|python_tag|>¦c|search.call(query="a; b")',
    "broken call, then a good one": 'f|<|python_tag|>{"name": ¦n|f¦f| ¦c|oops}¦f|; ' + CALL,
    "a record with a name": 'c|{"name": "Oslo", "population": 700000}',
    "parameters without a name": 'c|{"parameters": {"x": 1}}',
    "a record cut in its name": 'f|{"name": "¦n|Osl',
    "cut in a name": 'f|{"name": "¦n|get_we',
    "cut in a value": 'f|{"name": "¦n|f¦f|", "parameters": ¦p|{"a": "b\\',
    "cut before the first key ends": 'c|{"na',
    "cut in the tag": "c|<|python_t",
}


@pytest.mark.parametrize("template", HAND_LABELLED.values(), ids=HAND_LABELLED)
def test_bytes_are_labelled_as_by_hand(template):
    text, expected = marked(template)
    assert label_bytes(text, LLAMA3)[: len(text)].tolist() == expected


def test_tokens_of_a_call_and_its_stop_token():
    pieces = [
        b"<|python_tag|>",
        b'{"',
        b"name",
        b'":',
        b' "',
        b"get",
        b"_x",
        b'",',
        b' "parameters":',
        b" {}",
        b"}",
        b"<|eom_id|>",
    ]
    assert label_regions(pieces, stop_token=True, grammar=LLAMA3) == [F, F, F, F, F, N, N, F, F, P, F, F]
    assert label_regions([b"Hi", b"<|eot_id|>"], stop_token=True, grammar=LLAMA3) == [C, F]


GOOD = '{"name": "f", "parameters": {"x": 1}}'
GOOD_CALL = Call("f", {"x": "1"})


@pytest.mark.parametrize(
    "text, calls, response",
    [
        ("<|python_tag|>" + GOOD, (GOOD_CALL,), False),
        (GOOD, (GOOD_CALL,), False),
        ("\n" + GOOD + "\n", (GOOD_CALL,), False),
        (GOOD.replace("parameters", "arguments"), (GOOD_CALL,), False),
        (GOOD + "; " + GOOD, (GOOD_CALL, GOOD_CALL), False),
        ("<|python_tag|>" + GOOD + ";" + GOOD + "\n" + GOOD, (GOOD_CALL,) * 3, False),
        ('{\n  "name": "f",\n  "parameters": {\n    "x": 1\n  }\n}', (GOOD_CALL,), False),
        ("It is 20 degrees; sunny.", (), True),
        ('{"temperature": 20}', (), True),
        ('{"name": "Oslo"}', (), True),
        ('{"arguments": {"x": 1}}', (), True),
        ("I look it up.\n<|python_tag|>" + GOOD, (GOOD_CALL,), True),
        ("", (), False),
    ],
)
def test_well_formed_answers(text, calls, response):
    answer = parse(text.encode(), LLAMA3)
    assert answer.problems == ()
    assert (answer.calls, answer.tool_call, answer.response) == (calls, bool(calls), response)


@pytest.mark.parametrize(
    "text, calls, problems",
    [
        ("<|python_tag|>", (), ("empty_tool_call",)),
        ("<|python_tag|>f(x=1)", (), ("empty_tool_call", "text_in_tool_call")),
        ("<|python_tag|>" + GOOD + "; <|python_tag|>" + GOOD, (GOOD_CALL,) * 2, ("repeated_tool_call",)),
        (GOOD + "\nDone.", (GOOD_CALL,), ("text_in_tool_call",)),
        (GOOD + ";; " + GOOD, (GOOD_CALL,) * 2, ("text_in_tool_call",)),
        (GOOD[:-1], (None,), ("bad_json",)),
        (GOOD + "; " + GOOD[:-9], (GOOD_CALL, None), ("bad_json",)),
        (GOOD.replace("1", "NaN"), (None,), ("bad_number",)),
        ('{"name": 3, "parameters": {}}', (None,), ("bad_call",)),
        ('<|python_tag|>{"name": "f"}', (None,), ("bad_call",)),
        (GOOD.replace('{"n', '{"type": "function", "n'), (GOOD_CALL,), ("unknown_key",)),
        ("; ".join([GOOD] * 65), (), ("too_many_calls",)),
    ],
)
def test_broken_format(text, calls, problems):
    answer = parse(text.encode(), LLAMA3)
    assert (answer.calls, answer.problems) == (calls, problems)


def test_a_prompt_that_opens_a_thought_is_refused():
    with pytest.raises(ValueError, match="answers of this grammar have none"):
        label_regions([b"t"], stop_token=False, grammar=LLAMA3, think_open=True)
    with pytest.raises(ValueError, match="answers of this grammar have none"):
        parse(b"t", LLAMA3, think_open=True)
