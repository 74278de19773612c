"""`rest_megatron.method.reference_weights`: the published code's token weights."""

import json
import lzma
import random
import time

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rest_megatron.data.tokens import token_bytes
from rest_megatron.method.reference_weights import reference_weights
from tests.paths import SHARED

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
CALL = '{"name": "f", "parameters": {"a": 1}}'


def golden_cases():
    if not SHARED.exists():
        return []
    return [json.loads(line) for line in (SHARED / "golden" / "weights.jsonl").read_text().splitlines()]


GOLDEN = golden_cases()
DEFINED = [c for c in GOLDEN if not any(isinstance(w, dict) for w in c["weights"].values())]


@pytest.fixture(scope="module")
def tables():
    texts = {
        "small_bpe": (SHARED / "tokenizer" / "small_bpe.json").read_bytes(),
        "qwen3": lzma.decompress((SHARED / "tokenizer" / "qwen3_tokenizer.json.xz").read_bytes()),
    }
    fast = {name: PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(x)) for name, x in texts.items()}
    return {name: token_bytes(tokenizer) for name, tokenizer in fast.items()}


def published(case: dict, step: str) -> list[float]:
    return [value for value, count in case["weights"][step] for _ in range(count)]


def weigh(case: dict, table: list[bytes], step: str, ids: list[int]) -> list[float]:
    return reference_weights([table[i] for i in ids], step=int(step), answer_length=case["mask_len"])


def cut(text: str | bytes, *pieces: int) -> list[bytes]:
    """`text` in pieces of the sizes given, the rest byte by byte."""
    data, out = text.encode() if isinstance(text, str) else text, []
    for size in pieces:
        out, data = [*out, data[:size]], data[size:]
    return out + [data[i : i + 1] for i in range(len(data))]


@needs_shared
@pytest.mark.parametrize("tokenizer", ["small_bpe", "qwen3"])
def test_weights_equal_the_published_code(tables, tokenizer):
    cases = [c for c in DEFINED if c["tokenizer"] == tokenizer and c["retok_equal"]]
    assert len(cases) > 70
    for case in cases:
        for step in case["weights"]:
            ours = weigh(case, tables[tokenizer], step, case["ids"])
            assert ours == pytest.approx(published(case, step), abs=1e-6, rel=0), (case["name"], step)


@needs_shared
def test_defect_6_the_published_code_weighs_the_tokens_of_a_second_tokenisation(tables):
    """Where the second tokenisation differs ours differ; on its own ids ours are the published ones."""
    cases = [c for c in DEFINED if not c["retok_equal"]]
    assert len(cases) > 10
    for case in cases:
        table, size = tables[case["tokenizer"]], len(case["ids"])
        for step in case["weights"]:
            expected = published(case, step)
            assert weigh(case, table, step, case["ids"]) != pytest.approx(expected, abs=1e-6, rel=0), case["name"]
            again = (weigh(case, table, step, case["retok_ids"]) + [0.0] * size)[:size]
            assert again == pytest.approx(expected, abs=1e-6, rel=0), case["name"]


@pytest.mark.parametrize(
    "pieces, expected",
    [
        # No token starts at or after the closing tag.
        ([b"<think>hi</think>"], [1.0]),
        # Nor after either tag of the response.
        ([b"<think>", b"a", b"</think> <response>b</response>"], [3 / 2.6, 1.8 / 2.6, 3 / 2.6]),
    ],
)
def test_defect_7_a_span_without_tokens_is_skipped_where_the_published_code_crashes(pieces, expected):
    assert reference_weights(pieces, step=0) == pytest.approx(expected)


def test_weights_of_a_call_by_hand():
    weighed = [
        *[("<think>", 1.0), ("go on", 0.6), ("</think>", 1.0), ("\n", 0.0), ("<tool_call>", 1.0), ("\n", 0.0)],
        *[('{"name": "', 0.0), ("f", 1.2), ('", "parameters": ', 0.0), ('{"a"', 0.6), (": 1", 0.6), ("}", 0.0)],
        *[("}", 0.0), ("</tool_call>", 1.0), ("<|im_end|>", 0.0)],
    ]
    mean = sum(weight for _, weight in weighed) / 8
    weights = reference_weights([text.encode() for text, _ in weighed], step=0)
    assert weights == pytest.approx([weight / mean for _, weight in weighed])


@pytest.mark.parametrize(
    "step, thought, parameters", [(0, 0.6, 0.6), (100, 0.8, 0.8), (200, 1.0, 1.0), (250, 1.0, 1.1), (900, 1.0, 1.2)]
)
def test_thought_and_parameters_rise_with_the_step_to_their_ceilings(step, thought, parameters):
    pieces = cut(f"<think>abc</think><tool_call>{CALL}</tool_call>", 7, 3, 8, 11, 10, 1, 17, 6, 1, 1, 1, 12)
    weights = reference_weights(pieces, step=step)
    tag, name = weights[0], weights[5]
    assert weights[1] / tag == pytest.approx(thought)
    assert weights[7] / tag == pytest.approx(parameters)
    assert name / tag == pytest.approx(1.2)


def test_defect_1_the_last_token_of_a_span_is_left_out():
    assert reference_weights([b"<", b"response", b">", b"x", b"</response>"], step=0) == [1.0, 1.0, 0.0, 0.0, 1.0]


def test_defect_2_only_the_first_call_is_weighed():
    one, two = f"<tool_call>{CALL}</tool_call>", f"<tool_call>{CALL}\n{CALL}</tool_call>"
    positive = [sum(w > 0 for w in reference_weights(cut(text), step=0)) for text in (one, two)]
    assert positive[0] == positive[1]


@pytest.mark.parametrize("text", ["no tags", "<think> cut", f"<tool_call>{CALL}", "", f"<toolcall>{CALL}"])
def test_defect_4_an_answer_without_closed_tags_weighs_nothing(text):
    assert set(reference_weights(cut(text), step=0)) <= {0.0}


def test_defect_5_a_token_that_straddles_the_start_of_a_span_is_left_out():
    assert reference_weights([b"<response>", b"x </", b"response", b">"], step=0) == [1.0, 0.0, 1.0, 0.0]


def test_defect_8_an_opening_tag_in_the_thought_pairs_with_the_closing_tag_of_the_call():
    text = f"<think>a <tool_call> b</think><tool_call>{CALL}</tool_call>"
    weights = reference_weights(cut(text, 7, 2, 11, 2, 8, 11), step=0)
    assert weights[2] > 0
    assert weights[5] == 0


def test_defect_8_null_parameters_take_the_next_calls_object():
    first = '<tool_call>{"name": "f", "parameters": null}\n'
    weights = reference_weights(cut(first + CALL + "</tool_call>"), step=0)
    # The closing brace is the span's last token (defect 1).
    assert [w > 0 for w in weights[len(first) :][: len(CALL)]] == [True] * (len(CALL) - 1) + [False]


def test_defect_9_the_inside_of_toolcall_is_weighed_but_not_its_tags():
    text = f"<toolcall>{CALL}</toolcall>"
    weights = reference_weights(cut(text, 10), step=0)
    assert weights[0] == weights[-11] == 0
    assert max(weights) > 0


def test_braces_and_escaped_quotes_in_strings_do_not_end_the_parameters():
    text = '<tool_call>{"name": "f", "parameters": {"a": "}\\"}", "b": {}} }</tool_call>'
    weights = reference_weights(cut(text), step=0)
    start, end = text.index('{"a"'), text.index("} }<")
    # The closing brace is the span's last token (defect 1).
    assert all(w > 0 for w in weights[start:end])
    assert weights[end] == weights[end + 2] == 0


def test_a_character_cut_by_a_token_border_belongs_to_both_tokens():
    """The span ends with the thought's last character, so that character's last token is the one left out."""
    pieces = [b"<think>", b"a", "\u65e5".encode()[:1], "\u65e5".encode()[1:], b"</think>"]
    weights = reference_weights(pieces, step=0)
    assert [w > 0 for w in weights] == [True, True, False, False, True]


def test_bytes_that_are_no_text_do_not_shift_the_spans():
    weights = reference_weights([b"\xff\xe6\x97", b"<think>", b"a", b"</think>"], step=0)
    assert [w > 0 for w in weights] == [False, True, True, True]


def test_tokens_after_the_answer_weigh_nothing_and_do_not_count():
    pieces = [b"<think>", b"a", b"</think>", b"<|end|>", b"<think>", b"b", b"</think>"]
    weights = reference_weights(pieces, step=0, answer_length=4)
    assert weights[:4] == pytest.approx(reference_weights(pieces[:4], step=0))
    assert weights[4:] == [0.0] * 3


HOSTILE = {
    "open thoughts": b"<think>" * 9362,
    "thoughts": b"<think>a</think>" * 4096,
    "open calls": b"<tool_call>" * 5957,
    "calls": b'<tool_call>{"name":"f","parameters":{}}</tool_call>' * 1285,
    "names": b"<tool_call>" + b'"name"' * 10000 + b"</tool_call>",
    "names and spaces": b"<tool_call>" + (b'"name"' + b" " * 500 + b":" + b" " * 500) * 64 + b"</tool_call>",
    "an open name": b'<tool_call>"name":"' + b"x" * 65000 + b"</tool_call>",
    "braces": b'<tool_call>"parameters":' + b"{" * 65000 + b"</tool_call>",
    "quotes": b'<tool_call>"parameters":{' + b'"' * 65000 + b"</tool_call>",
    "escapes": b'<tool_call>"parameters":{"' + b"\\" * 65001 + b"</tool_call>",
    "no text": b"\xff" * 65536,
    "surrogates": "\ud800".encode("utf-8", "surrogatepass") * 21845,
    "characters": "\U0001f600".encode() * 16384,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_takes_linear_time(text):
    pieces = cut(text)
    reference_weights(pieces[:100], step=0)
    seconds = []
    for _ in range(3):
        started = time.process_time()
        weights = reference_weights(pieces, step=0)
        seconds.append(time.process_time() - started)
    assert len(weights) == len(pieces)
    assert min(seconds) < 0.05


def test_any_bytes_have_weights_of_mean_one():
    rng = random.Random(0)
    words = [b"<think>", b"</think>", b"<tool_call>", b"</tool_call>", b"</toolcall>", b"<response>", b"</response>"]
    words += [
        b'{"name": "',
        b'"',
        b'", "parameters": ',
        b"{",
        b"}",
        b"\\",
        b"",
        b"\xe6\x97",
        b"\xff",
        "\U0001f600".encode(),
    ]
    for _ in range(2000):
        pieces = [rng.choice(words) for _ in range(rng.randrange(30))]
        weights = reference_weights(pieces, step=rng.randrange(500))
        assert len(weights) == len(pieces)
        positive = [w for w in weights if w != 0]
        assert all(0 < w < 3 for w in positive)
        assert not positive or sum(positive) / len(positive) == pytest.approx(1.0)
