"""The quickstart's task: reproducible, valid for the trainer, and spoiled where it says so."""

import json
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from rest_megatron.config import load
from rest_megatron.data.demonstrations import load_demonstrations
from rest_megatron.data.prompts import load_prompts
from rest_megatron.reward.paper import parse_ground_truth, score
from tests.paths import EXAMPLES, QUICKSTART

sys.path.insert(0, str(QUICKSTART))  # its scripts import each other the way `python make_task.py` does
sys.path.insert(0, str(EXAMPLES / "compare"))

import arms as compare_arms
import corruptions
import make_task
import tool_task
import train_tokenizer

NUM_TASKS = 300


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(QUICKSTART / "model")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("quickstart")
    make_task.write_files(directory, seed=0)
    return directory


@pytest.fixture(scope="module")
def tasks():
    rng = random.Random(1)
    return [tool_task.draw_task(rng) for _ in range(NUM_TASKS)]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(files, tmp_path):
    for seed in (0, 1):
        make_task.write_files(tmp_path / str(seed), seed)
    for name in ("train.jsonl", "heldout.jsonl", "sft.jsonl"):
        assert (tmp_path / "0" / name).read_bytes() == (files / name).read_bytes()
        assert (tmp_path / "1" / name).read_bytes() != (files / name).read_bytes()


def test_no_prompt_comes_twice_in_or_across_the_files(files):
    names = ("train.jsonl", "heldout.jsonl", "sft.jsonl")
    prompts = [json.dumps(row["prompt"]) for name in names for row in read(files / name)]
    assert len(prompts) == make_task.Recipe.num_train + make_task.Recipe.num_heldout + make_task.NUM_DEMONSTRATIONS
    assert len(set(prompts)) == len(prompts)


def test_every_row_loads_within_the_limits_of_the_configurations(files, tokenizer):
    rest, sft = (load([QUICKSTART / name], []) for name in ("rest.yaml", "sft.yaml"))
    for name, size in (("train.jsonl", make_task.Recipe.num_train), ("heldout.jsonl", make_task.Recipe.num_heldout)):
        prompts = load_prompts(
            files / name, tokenizer, max_prompt_tokens=rest.data.max_prompt_tokens, validate=parse_ground_truth
        )
        assert len(prompts) == size
    demonstrations = load_demonstrations(
        files / "sft.jsonl", tokenizer, max_prompt_tokens=sft.data.max_prompt_tokens,
        max_response_tokens=sft.rollout.max_new_tokens,
    )  # fmt: skip
    assert len(demonstrations) == make_task.NUM_DEMONSTRATIONS
    longest = max(len(d.response_ids) for d in demonstrations)
    assert longest <= rest.rollout.max_new_tokens == sft.rollout.max_new_tokens


def test_the_right_answer_scores_full_marks(tasks):
    rng = random.Random(2)
    for task in tasks:
        truth = parse_ground_truth(task.answer.text())
        spoken = replace(task.answer, thought=tool_task.think_aloud(rng, task.answer.thought))
        result = score(spoken.text().encode(), truth, progress=0.0)
        assert (result.total, result.reason) == (4.0, "ok"), spoken


def test_each_corruption_costs_marks_for_its_own_reason(tasks):
    rng = random.Random(3)
    reasons = {
        "drop_parameter": {"wrong_parameter_names"},
        "rename_parameter": {"wrong_parameter_names"},
        "wrong_value": {"wrong_parameter_values"},
        "wrong_tool": {"wrong_name"},
        "duplicate_call": {"extra_call"},
        "missing_call": {"missing_call"},
        "call_instead": {"unwanted_tool_call"},
        "response_instead": {"no_tool_call"},
        "extra_response": {"unwanted_response"},
        "no_think": {"no_think"},
        "unclosed_think": {"unclosed_think"},
        "wrong_order": {"no_think", "text_outside"},
        "bad_json": {"bad_json"},
    }
    seen = set()
    for task in tasks:
        kinds = {0: corruptions.RESPONSE_KINDS, 1: corruptions.ONE_CALL_KINDS, 2: corruptions.TWO_CALL_KINDS}
        for kind in kinds[len(task.answer.calls)]:
            seen.add(kind.__name__)
            result = score(kind(rng, task, task.answer).encode(), parse_ground_truth(task.answer.text()), progress=0.0)
            assert result.total < 4.0 and result.reason in reasons[kind.__name__], (kind.__name__, task, result)
    assert seen == reasons.keys()


def test_six_demonstrations_in_ten_are_spoiled(files):
    rows = read(files / "sft.jsonl")
    right = sum(
        re.fullmatch(r"<think> [^<]* </think>\n(<tool_call>\n.*\n</tool_call>|<response> .* </response>)",
                     row["response"], re.S) is not None
        for row in rows
    )  # fmt: skip
    # 40% are right; of the spoiled ones about half keep the layout.
    assert 0.6 < right / len(rows) < 0.8


@pytest.mark.parametrize("task", ["quick", "long"])
def test_the_tasks_of_the_comparison_fit_their_configurations(task, tmp_path, tokenizer, monkeypatch):
    options = compare_arms.TASKS[task]
    monkeypatch.setattr(make_task, "NUM_DEMONSTRATIONS", 500)
    monkeypatch.setattr(sys, "argv", ["make_task.py", "--out", str(tmp_path), *options.recipe])
    make_task.main()
    rest, sft = load(compare_arms.files(task), []), load([EXAMPLES / file for file in options.sft], [])
    demonstrations = load_demonstrations(
        tmp_path / "sft.jsonl", tokenizer, max_prompt_tokens=sft.data.max_prompt_tokens,
        max_response_tokens=sft.rollout.max_new_tokens,
    )  # fmt: skip
    longest = max(len(d.response_ids) for d in demonstrations)
    assert longest <= rest.rollout.max_new_tokens == sft.rollout.max_new_tokens
    assert len(read(tmp_path / "heldout.jsonl")) == 512


def test_long_thoughts_are_padded_and_keep_their_layout(tasks):
    rng = random.Random(6)
    recipe = make_task.Recipe(fillers=(40, 60), spoiled_share=1.0, layout=False)
    for task in tasks:
        response = make_task.demonstration_row(rng, task, recipe)["response"]
        thought = re.match(r"<think> ([^<]*) </think>\n", response)[1].removesuffix(f" {task.answer.thought}")
        assert 40 <= len(thought.split()) <= 60
        assert score(response.encode(), parse_ground_truth(task.answer.text()), progress=0.0).total < 4.0


def test_the_kinds_of_request_come_in_the_stated_shares():
    rng = random.Random(4)
    calls = [len(tool_task.draw_task(rng).answer.calls) for _ in range(4000)]
    assert [calls.count(number) / 4000 for number in (1, 2, 0)] == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_tags_turn_marks_and_words_are_single_tokens(tasks, tokenizer):
    for mark in (*train_tokenizer.TAGS, *train_tokenizer.TURN_MARKS):
        assert len(tokenizer.encode(mark)) == 1, mark
    rng = random.Random(5)
    for task in tasks:
        texts = [message["content"] for message in task.messages()]
        texts += [task.answer.action(), tool_task.think_aloud(rng, f"so {task.answer.thought}")]
        for text in texts:
            pieces = [piece.strip("ĠĊ_") for piece in tokenizer.tokenize(text)]
            words = re.findall(r"[A-Za-z]+", re.sub(r"<\S+>", "", text))
            assert [piece for piece in pieces if piece.isalpha()] == words


def test_the_tokenizer_gives_back_every_text(tasks, tokenizer):
    for task in tasks:
        assert tokenizer.decode(tokenizer.encode(task.answer.text())) == task.answer.text()
    assert tokenizer.decode(tokenizer.encode("naïve 数 \x00 ½")) == "naïve 数 \x00 ½"


def test_the_committed_tokenizer_is_what_its_script_trains():
    trained = train_tokenizer.train(train_tokenizer.corpus(seed=0, num_tasks=4000))
    assert trained.to_str() == Tokenizer.from_file(str(QUICKSTART / "model" / "tokenizer.json")).to_str()


def test_the_chat_template_keeps_thoughts_and_only_ever_appends(tokenizer):
    turns = [
        {"role": "system", "content": "Tools"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<think> just talk </think>\n<response> happy to help </response>"},
        {"role": "user", "content": "thanks"},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert turns[2]["content"] in whole
    for length in range(1, len(turns)):
        assert whole.startswith(tokenizer.apply_chat_template(turns[:length], tokenize=False))
    asked = tokenizer.apply_chat_template(turns[:2], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(asked)


def test_the_policy_matches_its_tokenizer_and_can_be_cut(tokenizer):
    config = AutoConfig.from_pretrained(QUICKSTART / "model")
    assert config.vocab_size == len(tokenizer)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert config.vocab_size % 4 == config.intermediate_size % 4 == config.num_hidden_layers % 4 == 0
    assert config.num_key_value_heads % 2 == 0
