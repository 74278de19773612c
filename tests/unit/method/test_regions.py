"""`rest_megatron.method.regions`: one region per sampled token."""

import itertools
import random
import time

import pytest

from rest_megatron.grammar import GRAMMARS, opens_think
from rest_megatron.method.regions import label_bytes, label_regions
from tests.unit.grammar.answers import C, F, P, marked

OPEN = "f|<think>¦c|t¦f|</think>\n<tool_call>\n"
CLOSE = "\n</tool_call>"
CALL = '{"name": "¦n|f¦f|", "parameters": ¦p|{}¦f|}'
HAND_LABELLED = {
    "one call": OPEN + '{"name": "¦n|get_x¦f|", "parameters": ¦p|{"a": [1, {"b": 2}]}¦f|}' + CLOSE,
    "response": "f|<think>¦c| hm ¦f|</think>\n<response>¦c| Hello. ¦f|</response>\n",
    "call and response": OPEN + CALL + CLOSE + "\n<response>¦c| x ¦f|</response>",
    "two calls": OPEN + CALL + '\n{"name":"¦n|g h¦f|","parameters":¦p|{"y": "2"}¦f|}' + CLOSE,
    "parameters first": OPEN + '{"arguments": ¦p|{"name": "inner"}¦f|, "name": "¦n|f¦f|"}' + CLOSE,
    "null parameters": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|null¦f|}\n' + CALL + CLOSE,
    "braces, escapes and tags in strings": OPEN
    + '{"name": "¦n|a\\"}{¦f|", "parameters": ¦p|{"x": "}]\\\\\\"</tool_call>", '
    + '"y": "</think><tool_call>", "<think>": "\\u00e9é"}¦f|}'
    + CLOSE,
    "tags quoted in the thought": "f|<think>¦c| a <tool_call> in </think> or </think>\n<response> no </response>, so "
    "¦f|</think>\n<tool_call>\n" + CALL + CLOSE,
    "an answer quoted in the thought": "f|<think>¦c| not </think>\n<response> so ¦f|</think>\n"
    "<response>¦c| Hi ¦f|</response>",
    "tags quoted in the response": "f|<think>¦c|t¦f|</think>\n<response>¦c| use <tool_call> or </think> ¦f|</response>",
    "unknown member": OPEN + '{"name": "¦n|f¦f|", ¦c|"id": [1, 2]¦f|, "parameters": ¦p|{}¦f|}' + CLOSE,
    "name is not a string": OPEN + '{"name": ¦n|12¦f|, "parameters": ¦p|[1]¦f|}' + CLOSE,
    "text around": "c|Sure!\n¦f|<think>¦c|t¦f|</think>¦c| then ¦f|<response>¦c|r¦f|</response>¦c|\nBye",
    "no tags": 'c|just text {"name": "f"}',
    "no thought": "f|<tool_call>\n" + CALL + CLOSE,
    "unclosed thought": 'f|<think>¦c| a\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
    "unopened thought": "c| a </think>\n¦f|<response>¦c|r¦f|</response>",
    "cut in a name": OPEN + '{"name": "¦n|get_we',
    "cut in a value": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|{"a": "b\\',
    "cut in the response": "f|<think>¦c|t¦f|</think>\n<response>¦c| I wou",
    "cut in a tag": "f|<think>¦c|t</thi",
    "missing brace": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|{"a": 1}¦f|' + CLOSE,
    "missing braces": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|{"a": 1\n¦f|</tool_call>',
    "single quotes": OPEN + "{¦c|'name': 'f', 'parameters': {}}¦f|" + CLOSE,
    "broken line, then a good one": OPEN + '{"name": ¦n|oops¦c|: 1}¦f|\n' + CALL + CLOSE,
    "line break in a string": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|{"a": "x¦f|\n¦c|y"}}¦f|' + CLOSE,
    "a list of calls": OPEN + "¦c|[¦f|" + CALL + "¦c|]¦f|" + CLOSE,
    "escaped key": OPEN + '{"\\u006eame": "¦n|f¦f|", "param\\u0065ters": ¦p|{}¦f|}' + CLOSE,
    "too deep": OPEN + '{"name": "¦n|f¦f|", "parameters": ¦p|' + "[" * 31 + "¦c|" + "[" * 9 + "¦f|" + CLOSE,
}


@pytest.mark.parametrize("template", HAND_LABELLED.values(), ids=HAND_LABELLED)
def test_bytes_are_labelled_as_by_hand(template):
    text, expected = marked(template)
    assert label_bytes(text)[: len(text)].tolist() == expected


@pytest.mark.parametrize("template", HAND_LABELLED.values(), ids=HAND_LABELLED)
def test_every_cut_into_tokens_takes_the_label_of_the_first_visible_byte(template):
    text, by_byte = marked(template)
    rng = random.Random(0)
    for _ in range(20):
        pieces, expected = random_pieces(rng, text, by_byte)
        assert label_regions(pieces, stop_token=False) == expected
        assert label_regions([*pieces, b"<|im_end|>"], stop_token=True) == [*expected, F]


def random_pieces(rng: random.Random, text: bytes, by_byte: list[int]) -> tuple[list[bytes], list[int]]:
    cuts = sorted({0, len(text), *(rng.randrange(len(text)) for _ in range(rng.randrange(1, 60)))})
    bounds = list(itertools.pairwise(cuts))
    lead = [len(text[a:b]) - len(text[a:b].lstrip()) for a, b in bounds]
    return [text[a:b] for a, b in bounds], [
        by_byte[a + (n if a + n < b else 0)] for (a, b), n in zip(bounds, lead, strict=True)
    ]


@pytest.mark.parametrize(
    "pieces, expected",
    [
        ([b"<think>", b" a", b" </", b"think", b">\n"], [F, C, F, F, F]),  # a tag in several tokens, one with a space
        ([b"<think>hi</think>", b"\n", b"<response>b</response>"], [F, F, F]),  # a word-level tokenizer
        (
            [b"<think>x </think>", b"\n<tool_call>\n", b'{"name": "f"', b',"parameters":{', b'"a":1', b"}}\n"],
            [F, F, F, F, P, P],
        ),
        ([b"<think>", b"\xe6\x97", b"\xa5", b"</think>"], [F, C, C, F]),  # one character in two tokens
        ([b"<think>", b"", b"x", b"</think>", b""], [F, C, C, F, F]),  # ids without a token
        ([], []),
        ([b"", b""], [C, C]),
    ],
)
def test_tokens_at_borders(pieces, expected):
    assert label_regions(pieces, stop_token=False) == expected


def test_the_stop_token_is_format_and_not_text():
    assert label_regions([b"<|im_end|>"], stop_token=True) == [F]
    assert label_regions([b"hello", b"<response>"], stop_token=True) == [C, F]
    assert label_regions([], stop_token=True) == []


def test_labels_do_not_change_as_a_call_grows():
    text, expected = marked(HAND_LABELLED["braces, escapes and tags in strings"])
    opened, closed = text.index(b"<tool_call>") + len("<tool_call>"), text.rindex(b"</tool_call>")
    for size in range(opened, closed):
        assert label_bytes(text[:size])[:size].tolist() == expected[:size]


@pytest.mark.parametrize(
    "template",
    [
        "c|so ¦f|</think>\n<response>¦c|r¦f|</response>",
        "c|so¦f|</think>\n<tool_call>\n" + CALL + CLOSE,
        "c|a </think> and <tool_call> b¦f|</think>\n<tool_call>\n" + CALL + CLOSE,
        "f|</think>\n<response>¦c|r¦f|</response>",
        "c|<think> twice¦f|</think>\n<response>¦c|r¦f|</response>",
        "c| cut <tool_call>\n{",
    ],
)
def test_an_answer_to_a_prompt_that_opened_the_thought_begins_inside_it(template):
    text, expected = marked(template)
    assert label_bytes(text, think_open=True)[: len(text)].tolist() == expected
    assert label_regions([bytes([byte]) for byte in text], stop_token=False, think_open=True) == expected


@pytest.mark.parametrize(
    "prompt, inside",
    [
        (b"<|im_start|>assistant\n<think>\n", True),
        (b"<|im_start|>assistant\n<think>", True),
        (b"<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        (b"<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", False),
        (b"", False),
    ],
)
def test_a_prompt_opens_a_thought_only_with_the_tag_at_its_end(prompt, inside):
    assert opens_think(prompt) is inside


HOSTILE = [
    b"<think>" + b"<think>" * 40_000,
    b"<think>" + b"</think>" * 40_000,
    b"<think>" + b'</think><tool_call>{"a":"' * 12_000,
    b"<think>" + b"</think><tool_call>{}</tool_call>x" * 9_000,
    b"<think></think>" + b" " * 300_000,
    b"<tool_call>" * 30_000,
    b"<tool_call>{" * 30_000,
    b"<tool_call>{</tool_call>" * 12_000,
    b"<response></response>" * 15_000,
    b"<|python_tag|>{" * 20_000,
    b'{"name":' + b"[" * 300_000,
    b'{"name":"' + b'\\"' * 150_000,
    b'{"name":"f","parameters":' * 12_000,
    b"{" + b'"\\u006eame":1,' * 20_000,
    b"x\n" * 150_000,
    b"{}" * 150_000,
    b"{};" * 100_000,
    b"{" + b";" * 300_000,
    b'"' * 300_000,
]


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_take_linear_time(hostile, grammar):
    for opening in (b"", b"<tool_call>\n", b"<|python_tag|>"):
        text = opening + hostile
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        start = time.process_time()
        assert len(label_regions(pieces, stop_token=False, grammar=grammar)) == len(pieces)
        assert time.process_time() - start < 2.0  # 300 KB; at most 0.1 s here, minutes if any step were quadratic
