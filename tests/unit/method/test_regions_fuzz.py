"""Region labels of generated and broken answers in every grammar, against json's own decoder."""

import json
import random
import re
from collections import Counter

import pytest

from rest_megatron.grammar import GRAMMARS, split
from rest_megatron.method.regions import Region, label_bytes, label_regions
from rest_megatron.reward.parse import parse
from tests.unit.grammar.answers import RENDER, C, F, N, P, marked, random_action

TAGS = [
    b"<think>",
    b"</think>",
    b"<tool_call>",
    b"</tool_call>",
    b"<response>",
    b"</response>",
    b"<|python_tag|>",
    b'{"name": "',
    b'", "parameters": {',
    b"}",
    b'"',
    b"\\",
    b"\n",
    b"; ",
]
NUM_FUZZED = 10_000


@pytest.mark.parametrize("name", GRAMMARS)
def test_well_formed_answers_are_labelled_as_built_and_read_by_the_parser(name):
    rng = random.Random(1)
    for _ in range(1000):
        action = random_action(rng)
        text, expected = marked(RENDER[name](action, rng))
        assert label_bytes(text, GRAMMARS[name])[: len(text)].tolist() == expected, text
        answer = parse(text, GRAMMARS[name])
        assert [call.name for call in answer.calls] == [json.loads(f'"{call}"') for call, _ in action.calls]
        assert [{key: json.loads(value) for key, value in call.parameters.items()} for call in answer.calls] == [
            json.loads(parameters) for _, parameters in action.calls
        ]
        assert answer.response == bool(action.response)


def test_ten_thousand_broken_answers_keep_the_partition_and_the_spans_of_their_whole_calls():
    rng = random.Random(2)
    whole_calls = clean = 0
    for number in range(NUM_FUZZED):
        name = list(GRAMMARS)[number % 3]
        grammar = GRAMMARS[name]
        text, _ = marked(RENDER[name](random_action(rng), rng))
        text = broken(rng, text)
        think_open = grammar.think is not None and rng.random() < 0.2
        by_byte = label_bytes(text, grammar, think_open=think_open)[: len(text)].tolist()
        check_partition(rng, text, by_byte, grammar, think_open)
        calls = [call for section in split(text, grammar, think_open=think_open) for call in section.calls]
        found = whole_objects(text, [call.start for call in calls])
        for start, end, spans in found:
            assert by_byte[start:end] == painted(end - start, spans), text[start:end]
        whole_calls += len(found)
        answer = parse(text, grammar, think_open=think_open)
        if not answer.problems:
            clean += 1
            skeleton = [brace.start() for brace in re.finditer(b"{", text) if by_byte[brace.start()] == F]
            assert skeleton == [start for start, _, _ in found]
            assert Counter(by_byte) & Counter({N: len(text), P: len(text)}) == sum(
                (Counter({region: end - start}) for *_, spans in found for start, end, region in spans if region != C),
                Counter(),
            ), text
            assert [read(text[start:end]) for start, end, _ in found] == [
                (call.name, {key: json.loads(value) for key, value in call.parameters.items()}) for call in answer.calls
            ]
    assert whole_calls > NUM_FUZZED / 4
    assert clean > NUM_FUZZED / 10


def broken(rng: random.Random, text: bytes) -> bytes:
    """An answer cut short, with bytes changed, tags put in, or stretches doubled or lost."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        length = rng.randrange(1, 30)
        kind = rng.randrange(6)
        if kind == 0 and rng.random() < 0.5:
            text = text[:at]
        elif kind == 1:
            text = text[:at] + rng.randbytes(1) + text[at + 1 :]
        elif kind in (2, 3):
            text = text[:at] + rng.choice(TAGS) + text[at:]
        elif kind == 4:
            text = text[:at] + text[at : at + length] * 2 + text[at + length :]
        elif kind == 5:
            text = text[:at] + text[at + length :]
    return text


def check_partition(rng, text, by_byte, grammar, think_open) -> None:
    """Tokens of any size, with characters split between them: one region each, that of the first non-space byte."""
    pieces, expected = [], []
    start = 0
    while start < len(text):
        end = min(len(text), start + rng.randrange(1, 9))
        first = next((at for at in range(start, end) if not text[at : at + 1].isspace()), start)
        pieces.append(text[start:end])
        expected.append(by_byte[first])
        start = end
    assert set(expected) <= set(Region)
    labels = label_regions([*pieces, b"<|im_end|>"], stop_token=True, grammar=grammar, think_open=think_open)
    assert labels == [*expected, F]


def whole_objects(text: bytes, starts: list[int]) -> list[tuple[int, int, list[tuple[int, int, Region]]]]:
    """(start, end, spans) of every object that json can read from one of `starts`; the spans are relative to it.

    Latin-1 gives each byte its own character, so the decoder's positions are positions of bytes.
    """
    chars = text.decode("latin-1")
    objects = [(start, json_members(chars, start)) for start in starts]
    return [(start, *members) for start, members in objects if members is not None]


def json_members(chars: str, start: int) -> tuple[int, list[tuple[int, int, Region]]] | None:
    """The end of the object at `start` and the labelled spans of its members, or None if json cannot read it."""
    decoder = json.JSONDecoder()
    try:
        _, end = decoder.raw_decode(chars, start)
    except ValueError:
        return None
    spans, at = [], start + 1
    while (at := skip(chars, at, " \t\r\n,")) < end - 1:
        key, key_end = decoder.raw_decode(chars, at)
        value_start = skip(chars, key_end, " \t\r\n:")
        value, value_end = decoder.raw_decode(chars, value_start)
        quoted = isinstance(value, str)
        if key == "name":
            spans.append((value_start - start + quoted, value_end - start - quoted, N))
        elif key in ("parameters", "arguments"):
            spans.append((value_start - start, value_end - start, P))
        else:
            spans.append((at - start, value_end - start, C))
        at = value_end
    return end, spans


def skip(chars: str, at: int, among: str) -> int:
    while at < len(chars) and chars[at] in among:
        at += 1
    return at


def painted(length: int, spans: list[tuple[int, int, Region]]) -> list[int]:
    labels = [F] * length
    for start, end, region in spans:
        labels[start:end] = [region] * (end - start)
    return labels


def read(call: bytes) -> tuple[str, dict]:
    members = json.loads(call)
    return members["name"], members.get("parameters", members.get("arguments"))
