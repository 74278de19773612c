"""`rest_megatron.method.regions`: one region per sampled token."""

import json
import lzma
import random
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rest_megatron.method.regions import Region, label_bytes, label_regions
from rest_megatron.reward.parse import parse
from rest_megatron.tokens import token_bytes

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
F, N, P, C = Region.FORMAT, Region.TOOL_NAME, Region.PARAMETERS, Region.COT
LETTER = {"f": F, "n": N, "p": P, "c": C}


def marked(template: str) -> tuple[bytes, list[int]]:
    """ "{f|<think>}{c| hi }" style: text and the expected label of each byte, written by hand."""
    text, labels = b"", []
    for part in template.split("¦"):
        letter, body = part[0], part[2:].encode()
        text += body
        labels += [LETTER[letter]] * len(body)
    return text, labels


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
    bounds = list(zip(cuts, cuts[1:], strict=False))
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


WORDS = [
    "<tool_call>",
    "</tool_call>",
    "<response>",
    "{",
    "}",
    '"',
    "\\",
    "]",
    "é",
    "日本",
    "\n",
    ":",
    ",",
    "<think>",
    "name",
]


def random_answer(rng: random.Random) -> str:
    """A well-formed answer in the notation of `marked`, with tags and escapes in the thought and in every string."""

    def text(words: list[str]) -> str:
        return "".join(rng.choice(words) for _ in range(rng.randrange(6)))

    def value(depth: int):
        kinds = [lambda: text(in_strings), lambda: rng.randrange(99), lambda: None, lambda: True, lambda: -1.5e-3]
        if depth < 3:
            kinds.append(lambda: {text(in_strings): value(depth + 1) for _ in range(3)})
            kinds.append(lambda: [value(depth + 1) for _ in range(2)])
        return rng.choice(kinds)()

    def dumps(item) -> str:
        return json.dumps(item, ensure_ascii=rng.random() < 0.5, separators=rng.choice([(", ", ": "), (",", ":")]))

    quotes_think = rng.random() < 0.5
    in_strings = [*WORDS, "</think>", "</think><tool_call>"] if quotes_think else WORDS
    lines = ""
    for _ in range(rng.randrange(1, 4)):
        name = dumps(text(in_strings) or "f")[1:-1]
        parameters = dumps({text(in_strings) + str(i): value(0) for i in range(rng.randrange(4))})
        members = [f'"name": "¦n|{name}¦f|"', f'"{rng.choice(["parameters", "arguments"])}": ¦p|{parameters}¦f|']
        rng.shuffle(members)
        lines += "{" + ", ".join(members) + "}\n"
    thought = text(WORDS if quotes_think else [*WORDS, "</think>", "</think>\n<response>"])
    response = "" if rng.random() < 0.5 else "\n<response>¦c| Done: é} ¦f|</response>"
    return f"f|<think>¦c| {thought} ¦f|</think>\n<tool_call>\n{lines}</tool_call>{response}"


def test_generated_answers_are_labelled_as_built_and_read_by_the_parser():
    rng = random.Random(1)
    for _ in range(400):
        text, expected = marked(random_answer(rng))
        assert label_bytes(text)[: len(text)].tolist() == expected, text
        names = [json.loads(b'"' + name + b'"') for name in spans(text, expected, N)]
        values = [json.loads(value) for value in spans(text, expected, P)]
        calls = parse(text).calls
        assert [call.name for call in calls] == names
        assert [{key: json.loads(value) for key, value in call.parameters.items()} for call in calls] == values


def spans(text: bytes, labels: list[int], region: Region) -> list[bytes]:
    """The maximal runs of one label."""
    runs, previous = [], None
    for byte, label in zip(text, labels, strict=True):
        if label == region:
            if previous != region:
                runs.append(bytearray())
            runs[-1].append(byte)
        previous = label
    return [bytes(run) for run in runs]


@pytest.fixture(scope="module", params=["small_bpe.json", "qwen3_tokenizer.json.xz"])
def tokenizer(request):
    raw = (SHARED / "tokenizer" / request.param).read_bytes()
    text = lzma.decompress(raw) if request.param.endswith(".xz") else raw
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text.decode()))


@needs_shared
def test_real_answers_have_the_spans_that_json_and_the_parser_read(tokenizer):
    table = token_bytes(tokenizer)
    for row in json.loads((SHARED / "rlla_sft_sample.json").read_text()):
        text = row["output"].encode()
        template = real_template(row["output"])
        _, by_byte = marked(template)
        assert label_bytes(text)[: len(text)].tolist() == by_byte
        pieces = [table[i] for i in tokenizer.encode(row["output"], add_special_tokens=False)]
        expected, start = [], 0
        for piece in pieces:
            lead = len(piece) - len(piece.lstrip())
            expected.append(by_byte[start + (lead if lead < len(piece) else 0)])
            start += len(piece)
        assert label_regions(pieces, stop_token=False) == expected
        names = [json.loads(b'"' + name + b'"') for name in spans(text, by_byte, N)]
        assert [call.name for call in parse(text).calls] == names


def real_template(answer: str) -> str:
    """A real row in the notation of `marked`, found by the fixed layout of its lines."""
    thought, tail = answer[len("<think>") :].rsplit("</think>", 1)
    head = f"f|<think>¦c|{thought}¦f|</think>"
    if "<tool_call>" not in tail:
        body = tail.removeprefix("\n<response>").removesuffix("</response>")
        return f"{head}\n<response>¦c|{body}¦f|</response>"
    lines = []
    for line in tail.removeprefix("\n<tool_call>\n").removesuffix("\n</tool_call>").split("\n"):
        name, parameters = line.removeprefix('{"name": "').removesuffix("}").split('", "parameters": ', 1)
        assert json.loads(line) == {"name": json.loads(f'"{name}"'), "parameters": json.loads(parameters)}
        lines.append(f'{{"name": "¦n|{name}¦f|", "parameters": ¦p|{parameters}¦f|}}')
    return head + "\n<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


HOSTILE = {
    "thoughts": b"<think>" * 40_000,
    "ends": b"<think>" + b"</think>" * 40_000,
    "actions after ends": b"<think>" + b'</think><tool_call>{"a":"' * 12_000,
    "brackets": b'<tool_call>{"parameters":' + b"[" * 300_000,
    "escapes": b'<tool_call>{"name":"' + b'\\"' * 150_000,
    "lines": b"<tool_call>" + b"x\n" * 150_000,
    "calls": b"<tool_call>" + b"{}" * 150_000,
    "spaces": b"<think></think>" + b" " * 300_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_take_linear_time(text):
    pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
    start = time.process_time()
    assert len(label_regions(pieces, stop_token=False)) == len(pieces)
    assert time.process_time() - start < 1.0  # 300 KB; about 0.03 s here, minutes if any step were quadratic
