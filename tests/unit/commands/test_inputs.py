"""Prompts as a run reads them: what the reward and the answers' grammar refuse."""

import json

import pytest
from transformers import AutoTokenizer

from rest_megatron.commands.inputs import read_prompts
from rest_megatron.config import load
from rest_megatron.errors import ConfigError, DataError
from tests.paths import MODEL

OPENS_THOUGHT = "{% for m in messages %}{{ m['content'] }}{% endfor %}<think>\n"


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def rows(tmp_path):
    def write(truth="<response> hello </response>"):
        row = {"prompt": [{"role": "user", "content": "hello"}], "reward_model": {"ground_truth": truth}}
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        return str(path)

    return write


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes"])
def test_a_template_may_open_the_thought(tokenizer, rows, answer_format):
    tokenizer.chat_template = OPENS_THOUGHT
    assert len(read_prompts(load((), [f"data.answer_format={answer_format}"]), tokenizer, rows())) == 1


def test_a_template_that_opens_a_thought_is_refused_where_answers_have_none(tokenizer, rows):
    config = load((), ["data.answer_format=llama3"])
    assert len(read_prompts(config, tokenizer, rows())) == 1
    tokenizer.chat_template = OPENS_THOUGHT
    with pytest.raises(ConfigError, match="data.answer_format=llama3 has no thoughts"):
        read_prompts(config, tokenizer, rows())


@pytest.mark.parametrize("preset", ["paper", "reference", "poster"])
def test_a_ground_truth_that_the_reward_cannot_read_is_a_bad_row(tokenizer, rows, preset):
    with pytest.raises(DataError, match="row 0"):
        read_prompts(load((), [f"reward.preset={preset}"]), tokenizer, rows("<tool_call>\n{]\n</tool_call>"))
