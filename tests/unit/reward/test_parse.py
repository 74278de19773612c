"""`rest_megatron.reward.parse`: untrusted bytes to calls."""

import json
import random
import time

import pytest

from rest_megatron.grammar import GRAMMARS
from rest_megatron.reward.parse import Call, parse
from tests.paths import SHARED

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
THOUGHT = "<think> t </think>\n"
RESPONSE = "<response> r </response>"


def answer(*lines: str) -> bytes:
    return (THOUGHT + "<tool_call>\n" + "\n".join(lines) + "\n</tool_call>").encode()


def with_value(value: str) -> bytes:
    return answer('{"name": "f", "parameters": {"x": ' + value + "}}")


GOOD = '{"name": "f", "parameters": {"x": 1}}'
GOOD_CALL = Call("f", {"x": "1"})


@pytest.mark.parametrize(
    "lines, calls",
    [
        ([GOOD], (GOOD_CALL,)),
        ([GOOD, '{"parameters":{},"name":"g h"}'], (GOOD_CALL, Call("g h", {}))),
        (['{"name": "f", "arguments": {"x": 1}}'], (GOOD_CALL,)),
        (['  {"name": "f", "parameters": {"x": 1}}  ', "", GOOD], (GOOD_CALL, GOOD_CALL)),
        (['{"name": "</tool_call>", "parameters": {"<response>": "</think><tool_call>"}}'],
         (Call("</tool_call>", {"<response>": '"</think><tool_call>"'}),)),
        (['{"name": "\\u0066", "parameters": {"x": {"b": [1, 2.50], "a": null}}}'],
         (Call("f", {"x": '{"a":null,"b":[1,2.5]}'}),)),
    ],
)  # fmt: skip
def test_well_formed_calls(lines, calls):
    parsed = parse(answer(*lines))
    assert parsed.calls == calls
    assert parsed.problems == ()
    assert (parsed.tool_call, parsed.response) == (True, False)


def test_well_formed_response():
    parsed = parse((THOUGHT + RESPONSE).encode())
    assert (parsed.calls, parsed.tool_call, parsed.response, parsed.problems) == ((), False, True, ())


def test_call_then_response_and_white_space_around():
    parsed = parse(b"\n " + answer(GOOD) + b"\r\n" + RESPONSE.encode() + b" \n")
    assert parsed.calls == (GOOD_CALL,)
    assert parsed.response
    assert parsed.problems == ()


@pytest.mark.parametrize(
    "text, problem",
    [
        ("<tool_call>\n" + GOOD + "\n</tool_call>", "no_think"),
        ("t </think>\n" + RESPONSE, "no_think"),
        ("", "no_think"),
        ("<think> t\n" + RESPONSE, "unclosed_think"),
        ("<think> a <think> b </think> c </think>\n" + RESPONSE, "tag_in_think"),
        (THOUGHT + THOUGHT + RESPONSE, "tag_in_think"),
        ("Sure. " + THOUGHT + RESPONSE, "text_outside"),
        (THOUGHT + RESPONSE + " Bye.", "text_outside"),
        (THOUGHT + "and\n" + RESPONSE, "text_outside"),
        (THOUGHT + GOOD + "\n</tool_call>", "text_outside"),
        (RESPONSE + "\n" + THOUGHT, "no_think"),
        (THOUGHT + RESPONSE + "\n" + RESPONSE, "repeated_response"),
        (answer(GOOD).decode() + "\n<tool_call>\n" + GOOD + "\n</tool_call>", "repeated_tool_call"),
        (THOUGHT + RESPONSE + "\n<tool_call>\n" + GOOD + "\n</tool_call>", "wrong_order"),
        (THOUGHT + "<tool_call>\n" + GOOD, "unclosed_tool_call"),
        (THOUGHT + "<response> r", "unclosed_response"),
        (THOUGHT + "<tool_call>\n</tool_call>", "empty_tool_call"),
        (THOUGHT + "<response> \n </response>", "empty_response"),
        (THOUGHT + "<response> <tool_call>\n" + GOOD + "\n</tool_call> </response>", "tag_in_response"),
        (answer(GOOD, "and").decode(), "text_in_tool_call"),
        (answer("[" + GOOD + "]").decode(), "text_in_tool_call"),
        (THOUGHT.strip() + RESPONSE, "missing_newline"),
        (THOUGHT + "<tool_call>" + GOOD + "</tool_call>", "missing_newline"),
        (answer(GOOD + " " + GOOD).decode(), "missing_newline"),
        (answer(json.dumps(json.loads(GOOD), indent=2)).decode(), "missing_newline"),
        (answer('{"name": "f", "parameters": {}, "id": 1}').decode(), "unknown_key"),
    ],
)
def test_broken_format(text, problem):
    assert parse(text.encode()).problems[0] == problem


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{'name': 'f', 'parameters': {}}", "bad_json"),
        ('{"name": "f", "parameters": {"x": True}}', "bad_json"),
        ('{"name": "f", "parameters": {"x": 1,}}', "bad_json"),
        ('{"name": "f", "parameters": {"x": [1}}}', "bad_json"),
        ('{"name": "f", "parameters": {"x": "\t"}}', "bad_json"),
        ('{"name": f}', "bad_json"),
        ("{}", "bad_call"),
        ('{"name": "f"}', "bad_call"),
        ('{"parameters": {}}', "bad_call"),
        ('{"name": 1, "parameters": {}}', "bad_call"),
        ('{"name": null, "parameters": {}}', "bad_call"),
        ('{"name": "f", "parameters": null}', "bad_call"),
        ('{"name": "f", "parameters": [1]}', "bad_call"),
        ('{"name": "f", "parameters": "{}"}', "bad_call"),
        ('{"name": "f", "parameters": {}, "arguments": {}}', "bad_call"),
        ('{"name": "f", "name": "f", "parameters": {}}', "duplicate_key"),
        ('{"name": "f", "parameters": {"x": {"a": 1, "\\u0061": 1}}}', "duplicate_key"),
    ],
)
def test_a_call_that_cannot_be_read_keeps_its_place(line, problem):
    parsed = parse(answer(GOOD, line, GOOD))
    assert parsed.problems[0] == problem
    assert parsed.calls == (GOOD_CALL, None, GOOD_CALL)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 4097, "1." + "0" * 4096])
def test_numbers_without_a_finite_bounded_value_are_refused(value):
    parsed = parse(with_value(value))
    assert (parsed.calls, parsed.problems) == ((None,), ("bad_number",))


@pytest.mark.parametrize("value", ["9" * 4096, "1e308", "1e-999", "-0.5"])
def test_numbers_within_the_limits_are_read(value):
    assert parse(with_value(value)).problems == ()


@pytest.mark.parametrize("depth, problems", [(32, ()), (33, ("too_deep",)), (20_000, ("too_deep",))])
def test_nesting_limit(depth, problems):
    lists = depth - 2  # the call and its parameters
    parsed = parse(with_value("[" * lists + "]" * lists))
    assert tuple(p for p in parsed.problems if p != "text_in_tool_call") == problems


@pytest.mark.parametrize("length, problems", [(1024, ()), (1025, ("long_key",))])
def test_key_limit(length, problems):
    assert parse(with_value('{"' + "k" * length + '": 1}')).problems == problems


@pytest.mark.parametrize("count, problems", [(64, ()), (65, ("too_many_calls",))])
def test_call_limit(count, problems):
    parsed = parse(answer(*[GOOD] * count))
    assert parsed.problems == problems
    assert len(parsed.calls) == (0 if problems else count)


def test_size_limit():
    full = 64 * 1024 - len(with_value('""'))
    assert parse(with_value('"' + "x" * full + '"')).problems == ()
    parsed = parse(with_value('"' + "x" * (full + 1) + '"'))
    assert (parsed.calls, parsed.tool_call, parsed.problems) == ((), False, ("too_large",))


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("1", "1.0", False),
        ("1", "true", False),
        ("0", "false", False),
        ("1", '"1"', False),
        ("null", '"null"', False),
        ("[1, 2]", "[2, 1]", False),
        ("0.3", "0.30000000000000004", False),
        ('"\\u00e9"', '"e\\u0301"', False),  # composed and decomposed: no normalisation
        ('"a"', '"a "', False),
        ("1.0", "1.00", True),
        ("100.0", "1e2", True),
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1}', True),
        ('"\\u65e5"', '"日"', True),
        ('"\\ud800"', '"\\ud800"', True),
    ],
)
def test_values_are_equal_when_their_json_is_types_included(one, other, same):
    a, b = parse(with_value(one)), parse(with_value(other))
    assert a.problems == b.problems == ()
    assert (a.calls == b.calls) is same


@pytest.mark.parametrize("raw", [b'"\xff"', b'"\xed\xa0\x80"', b'"\xc3"'])
def test_invalid_utf8_is_bad_json(raw):
    parsed = parse(with_value("@").replace(b"@", raw))
    assert (parsed.calls, parsed.problems) == ((None,), ("bad_json",))


def test_invalid_utf8_in_the_thought_does_not_matter():
    assert parse(answer(GOOD).replace(b" t ", b" \xff\xc3 ")).problems == ()


@needs_shared
def test_real_answers_have_no_problem_and_the_calls_that_json_reads():
    for row in json.loads((SHARED / "rlla_sft_sample.json").read_text()):
        parsed = parse(row["output"].encode())
        assert parsed.problems == ()
        tail = row["output"].rsplit("</think>", 1)[1]
        lines = tail.split("\n")[2:-1] if "<tool_call>" in tail else []
        expected = [(call["name"], call["parameters"]) for call in map(json.loads, lines)]
        found = [(call.name, {k: json.loads(v) for k, v in call.parameters.items()}) for call in parsed.calls]
        assert found == expected


SEEDS = [
    answer(GOOD),
    answer(GOOD, '{"name": "g", "parameters": {"y": ["a\\n", {"b": null}]}}'),
    (THOUGHT + RESPONSE).encode(),
]
TOKENS = [token.encode("latin-1") for token in (
    '<think> </think> <tool_call> </tool_call> <response> </response> { } [ ] " \\ : , "name" "parameters" NaN 1e999 '
    "\xff \\ud800 \x00"
).split(" ")] + [b" ", b"\n"]  # fmt: skip


def mutated(rng: random.Random, text: bytes) -> bytes:
    for _ in range(rng.randrange(1, 6)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        middle = rng.choice([b"", rng.choice(TOKENS), rng.randbytes(3), text[a:b] * 2])
        text = text[:a] + middle + text[min(b, a + rng.randrange(8)) :]
    return text


def test_any_bytes_give_an_answer_whose_parts_agree():
    rng = random.Random(0)
    for number in range(6000):
        if number % 3 == 0:
            text = rng.randbytes(rng.randrange(200))
        elif number % 3 == 1:
            text = b"".join(rng.choice(TOKENS) for _ in range(rng.randrange(60)))
        else:
            text = mutated(rng, rng.choice(SEEDS))
        parsed = parse(text)
        assert parsed.tool_call or not parsed.calls
        assert (None in parsed.calls) <= bool(parsed.problems)
        if not parsed.problems:  # no problem found: the plain reading by the layout must agree
            tail = text.decode("utf-8", "replace").rsplit("</think>", 1)[1].strip()
            assert parsed.tool_call == tail.startswith("<tool_call>")
            assert parsed.response == tail.endswith("</response>")


def test_a_thought_that_the_prompt_opened_needs_no_tag():
    text = answer(GOOD).removeprefix(b"<think>")
    assert parse(text).problems == ("no_think", "text_outside")
    parsed = parse(text, think_open=True)
    assert (parsed.calls, parsed.problems) == ((GOOD_CALL,), ())


@pytest.mark.parametrize(
    "text, problem",
    [
        (b"", "unclosed_think"),
        (b" t", "unclosed_think"),
        (b" t\n<tool_call>\n" + GOOD.encode() + b"\n</tool_call>", "unclosed_think"),
        (answer(GOOD), "tag_in_think"),
    ],
)
def test_a_thought_that_the_prompt_opened_can_still_be_broken(text, problem):
    assert parse(text, think_open=True).problems == (problem,)


SIZE = 64 * 1024
HOSTILE = [
    b"<think>" + b"<think>" * SIZE,
    b"<think>" + b"</think>" * SIZE,
    b"<think>" + b'</think><tool_call>{"a":"' * SIZE,
    b"<think>" + b"</think><tool_call>{}</tool_call>x" * SIZE,
    b"<tool_call>" * SIZE,
    b"<tool_call>{" * SIZE,
    b"<tool_call>{}</tool_call>" * SIZE,
    b"<response></response>" * SIZE,
    b"<|python_tag|>{" * SIZE,
    b'{"name": "f", "parameters": ' + b"[" * SIZE,
    b'{"name": "f", "parameters": {"a": [' + b"[]," * SIZE,
    b'{"name": "f", "parameters": {"a": ' + b"9" * SIZE,
    b'{"name": "' + b'\\"' * SIZE,
    b"{" + b'"a":1,' * SIZE,
    b"{" + b'"\\u0061":1,' * SIZE,
    b"x\n" * SIZE,
    b"{}\n" * SIZE,
    b"{};" * SIZE,
    b"{" + b";" * SIZE,
    b'"' * SIZE,
]


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_of_the_largest_size_are_read_in_milliseconds(hostile, grammar):
    for opening in (b"", b"<think></think>\n<tool_call>\n", b"<|python_tag|>"):
        text = (opening + hostile)[:SIZE]
        start = time.process_time()
        parse(text, grammar)
        assert time.process_time() - start < 0.5  # at most 0.02 s here, minutes if any step were quadratic
