"""Region labels of every real row, in every grammar, over byte-level tokenizers."""

import json
import lzma
import random

import pyarrow.parquet
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from rest_megatron.data.tokens import token_bytes
from rest_megatron.grammar import GRAMMARS
from rest_megatron.method.regions import Region, label_bytes, label_regions
from rest_megatron.reward.parse import parse
from tests.paths import SHARED
from tests.unit.grammar.answers import RENDER, Action, F, N, P, marked, runs

pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    raw = (SHARED / "tokenizer" / name).read_bytes()
    text = lzma.decompress(raw) if name.endswith(".xz") else raw
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text.decode()))


@pytest.fixture(scope="module", params=["small_bpe.json", "qwen3_tokenizer.json.xz"])
def tokenizer(request):
    return load_tokenizer(request.param)


def rlla_answers() -> list[str]:
    """The supervised answers with their full thoughts, and every ground truth."""
    answers = [row["output"] for row in json.loads((SHARED / "rlla_sft_sample.json").read_text())]
    for file in ("rlla_train_sample", "test", "multiturn/glaive_decomposed_expected"):
        table = pyarrow.parquet.read_table(SHARED / f"{file}.parquet", columns=["reward_model"])
        answers += [row["reward_model"]["ground_truth"] for row in table.to_pylist()]
    return answers


def rlla_action(answer: str) -> Action:
    """A real answer taken apart by the fixed layout of its lines."""
    thought, tail = answer.removeprefix("<think>").rsplit("</think>", 1)
    if "\n<response>" in tail:
        tail, response = tail.removesuffix("</response>").split("\n<response>", 1)
    else:
        response = ""
    calls = []
    for line in tail.removeprefix("\n<tool_call>\n").removesuffix("\n</tool_call>").split("\n") if tail else []:
        name, parameters = line.removeprefix('{"name": "').removesuffix("}").split('", "parameters": ', 1)
        assert json.loads(line) == {"name": json.loads(f'"{name}"'), "parameters": json.loads(parameters)}
        calls.append((name, parameters))
    return Action(thought, calls, response)


def multiturn_actions() -> list[Action]:
    """The actions of the ShareGPT and the typed dialogues."""
    actions = []
    for row in json.loads((SHARED / "multiturn" / "glaive_sharegpt_60.json").read_text()):
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                actions.append(Action("", json_calls(turn["value"]), ""))
            elif turn["from"] == "gpt":
                actions.append(Action("", [], turn["value"]))
    for line in (SHARED / "multiturn" / "llamafactory_reason_tool_use_15.jsonl").read_text().splitlines():
        for message in json.loads(line)["messages"]:
            if message["role"] == "assistant":
                parts = [(part["type"], part["value"]) for part in message["content"]]
                actions.append(
                    Action(
                        "\n".join(value for kind, value in parts if kind == "reasoning"),
                        [call for kind, value in parts if kind == "tool_call" for call in json_calls(value)],
                        "\n".join(value for kind, value in parts if kind == "text"),
                    )
                )
    # One text quotes "</think>"; without response tags nobody can tell where the thought before it ends.
    return [action for action in actions if "</think>" not in action.response]


def json_calls(text: str) -> list[tuple[str, str]]:
    calls = json.loads(text)
    return [
        (json.dumps(call["name"])[1:-1], json.dumps(call["arguments"], ensure_ascii=False))
        for call in (calls if isinstance(calls, list) else [calls])
    ]


@pytest.fixture(scope="module")
def actions() -> list[Action]:
    return [rlla_action(answer) for answer in rlla_answers()] + multiturn_actions()


def expected_regions(pieces: list[bytes], by_byte: list[int]) -> list[int]:
    """Of each token the label of its first non-space byte, or of its first byte."""
    labels, start = [], 0
    for piece in pieces:
        lead = len(piece) - len(piece.lstrip())
        labels.append(by_byte[start + (lead if lead < len(piece) else 0)])
        start += len(piece)
    return labels


def test_real_answers_are_labelled_as_their_layout_says(tokenizer):
    table = token_bytes(tokenizer)
    answers = rlla_answers()
    assert len(answers) == 157 + 157 + 80 + 60
    for answer in answers:
        action = rlla_action(answer)
        calls = "\n".join(
            f'{{"name": "¦n|{name}¦f|", "parameters": ¦p|{parameters}¦f|}}' for name, parameters in action.calls
        )
        template = f"f|<think>¦c|{action.thought}¦f|</think>"
        template += f"\n<tool_call>\n{calls}\n</tool_call>" if calls else ""
        template += f"\n<response>¦c|{action.response}¦f|</response>" if action.response else ""
        text, by_byte = marked(template)
        assert text.decode() == answer
        pieces = [table[i] for i in tokenizer.encode(answer, add_special_tokens=False)]
        assert label_regions(pieces, stop_token=False) == expected_regions(pieces, by_byte)


@pytest.mark.parametrize("name", GRAMMARS)
def test_real_actions_in_every_grammar_have_the_spans_of_their_calls(actions, tokenizer, name):
    table = token_bytes(tokenizer)
    rng = random.Random(0)
    for action in actions:
        stripped = Action(action.thought, action.calls, action.response.strip())
        text, by_byte = marked(RENDER[name](stripped, rng))
        answer = parse(text, GRAMMARS[name])
        assert answer.problems == ()
        assert [call.name for call in answer.calls] == [json.loads(f'"{call}"') for call, _ in action.calls]
        assert [{key: json.loads(value) for key, value in call.parameters.items()} for call in answer.calls] == [
            json.loads(parameters) for _, parameters in action.calls
        ]
        assert answer.response == bool(stripped.response)
        pieces = [table[i] for i in tokenizer.encode(text.decode(), add_special_tokens=False)]
        assert b"".join(pieces) == text
        labels = label_regions(pieces, stop_token=False, grammar=GRAMMARS[name])
        assert labels == expected_regions(pieces, by_byte)


@pytest.mark.parametrize("source", ["small_bpe", "qwen3"])
def test_sampled_ids_have_one_region_each_and_calls_where_their_text_has_them(source):
    """Ids as a model sampled them: cut short, with drifted tokenisations and with an end token."""
    tokenizer = load_tokenizer({"small_bpe": "small_bpe.json", "qwen3": "qwen3_tokenizer.json.xz"}[source])
    table = token_bytes(tokenizer)
    rows = [json.loads(line) for line in (SHARED / "golden" / "weights.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["tokenizer"] == source]
    assert len(rows) > 80
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row in rows:
        ids = row["ids"][: row["mask_len"]]
        stop = bool(ids) and ids[-1] == end
        pieces = [table[i] for i in ids]
        labels = label_regions(pieces, stop_token=stop)
        assert len(labels) == len(ids)
        assert set(labels) <= set(Region)
        assert not stop or labels[-1] == F
        text = b"".join(pieces[: len(pieces) - stop])
        by_byte = label_bytes(text)[: len(text)].tolist()
        assert labels[: len(pieces) - stop] == expected_regions(pieces[: len(pieces) - stop], by_byte)
        answer = parse(text)
        if not answer.problems:
            names = [call.name for call in answer.calls if call.name]
            assert [json.loads(b'"%b"' % name) for name in runs(text, by_byte, N)] == names
            assert [json.loads(value) for value in runs(text, by_byte, P)] == [
                {key: json.loads(value) for key, value in call.parameters.items()} for call in answer.calls
            ]
