"""Demonstrations: what is imitated, token by token, and which rows are refused."""

import json
import logging

import pytest
from transformers import AutoTokenizer

from rest_megatron.data.demonstrations import load_demonstrations
from rest_megatron.errors import ConfigError, DataError
from tests.paths import MODEL

RESPONSE = "<think> just talk </think>\n<response> happy to help </response>"
LIMITS = {"max_prompt_tokens": 32, "max_response_tokens": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def write(tmp_path):
    """`write(response, ...)`: a file of one demonstration per response."""

    def write(*responses, request="hello"):
        rows = [{"prompt": [{"role": "user", "content": request}], "response": response} for response in responses]
        path = tmp_path / "sft.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_prompt_and_response_continue_each_other_and_end_the_turn(write, tokenizer):
    (demonstration,) = load_demonstrations(write(RESPONSE), tokenizer, **LIMITS)
    assert tokenizer.decode(demonstration.prompt_ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(demonstration.response_ids) == RESPONSE + "<|im_end|>"
    assert demonstration.response_ids[-1] == tokenizer.eos_token_id
    assert demonstration.response_ids.count(tokenizer.eos_token_id) == 1


def test_the_ids_are_those_of_the_template_rendering_the_whole_conversation(write, tokenizer):
    (demonstration,) = load_demonstrations(write(RESPONSE), tokenizer, **LIMITS)
    conversation = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": RESPONSE}]
    whole = tokenizer.apply_chat_template(conversation, return_dict=False)
    ids = list(demonstration.prompt_ids + demonstration.response_ids)
    assert ids == whole[: len(ids)]


def test_a_response_that_spells_the_end_of_turn_is_refused(write, tokenizer):
    with pytest.raises(DataError, match=r"row 1 \(line 2\): field 'response' spells .*<\|im_end\|>"):
        load_demonstrations(write(RESPONSE, RESPONSE + "<|im_end|>"), tokenizer, **LIMITS)


@pytest.mark.parametrize("response", ["", None, 3])
def test_a_response_that_is_no_text_is_refused(write, tokenizer, response):
    with pytest.raises(DataError, match=r"row 0 \(line 1\): field 'response'"):
        load_demonstrations(write(response), tokenizer, **LIMITS)


def test_the_response_limit_counts_the_end_of_turn_token(write, tokenizer):
    path = write(RESPONSE)
    length = len(tokenizer.encode(RESPONSE)) + 1
    assert load_demonstrations(path, tokenizer, max_prompt_tokens=32, max_response_tokens=length)
    with pytest.raises(DataError, match=f"the response has {length} tokens, rollout.max_new_tokens={length - 1}"):
        load_demonstrations(path, tokenizer, max_prompt_tokens=32, max_response_tokens=length - 1)


def test_a_long_prompt_is_refused(write, tokenizer):
    with pytest.raises(DataError, match="the prompt has .* tokens, data.max_prompt_tokens=32"):
        load_demonstrations(write(RESPONSE, request="hello " * 40), tokenizer, **LIMITS)


def test_overlong_rows_can_be_dropped_and_are_counted(write, tokenizer, caplog):
    path = write(RESPONSE, RESPONSE + " so" * 40, RESPONSE)
    with caplog.at_level(logging.WARNING):
        kept = load_demonstrations(path, tokenizer, overlong="drop", **LIMITS)
    assert [d.index for d in kept] == [0, 2]
    assert "dropped 1 of 3 rows" in caplog.text


def test_a_tokenizer_without_an_end_of_turn_token_is_refused(write):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token"):
        load_demonstrations(write(RESPONSE), tokenizer, **LIMITS)


def test_tools_of_a_row_are_announced_by_the_template(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = "{% for tool in tools or [] %}{{ tool.name }};{% endfor %}{{ messages[0].content }}"
    row = {"prompt": [{"role": "user", "content": "hello"}], "response": RESPONSE}
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps(row | {"tools": '[{"name": "f"}]'}) + "\n" + json.dumps(row) + "\n")
    shown = [tokenizer.decode(row.prompt_ids) for row in load_demonstrations(path, tokenizer, **LIMITS)]
    assert shown == ["f;hello", "hello"]
