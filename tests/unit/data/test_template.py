"""Chat templates: what ours renders, which is set, and what the check finds in those that lose thoughts."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import pytest
from transformers import AutoTokenizer

from rest_megatron.config.schema import Config, DataConfig, ModelConfig
from rest_megatron.data.template import check_template, dropped_thought, read_template
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.errors import CheckpointError, ConfigError
from tests.paths import MODEL
from tests.unit.data.chat_templates import ALWAYS_STRIPS, CLOSES, COUNTS, PLAIN, REFUSES, REWRITES, STRIPS

TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"a": [1, None, True]}}}]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Paris and Rome?"},
    {"role": "assistant", "content": "<think>\nTwo calls.\n</think>\n\n<tool_call>\n{}\n</tool_call>"},
    {"role": "tool", "content": "21"},
    {"role": "tool", "content": ""},
    {"role": "assistant", "content": "<think> Done. </think>\n<response> Warm. </response>"},
    {"role": "user", "content": "Thanks"},
]
# What Qwen's models were trained on, thoughts aside.
RENDERED = """\
<|im_start|>system
Be brief.

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "größe", "parameters": {"a": [1, null, true]}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
<|im_start|>user
Paris and Rome?<|im_end|>
<|im_start|>assistant
<think>
Two calls.
</think>

<tool_call>
{}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
21
</tool_response>
<tool_response>

</tool_response><|im_end|>
<|im_start|>assistant
<think> Done. </think>
<response> Warm. </response><|im_end|>
<|im_start|>user
Thanks<|im_end|>
<|im_start|>assistant
"""


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def keep_thinking(tokenizer):
    tokenizer.chat_template = read_template("keep_thinking", "default")
    return tokenizer


def config(chat_template) -> Config:
    return Config(model=ModelConfig(path=str(MODEL)), data=replace(DataConfig(), chat_template=chat_template))


def test_keep_thinking_renders_qwens_chatml_with_every_message_as_it_is(keep_thinking):
    options = {"tools": TOOLS, "add_generation_prompt": True, "tokenize": False}
    assert keep_thinking.apply_chat_template(DIALOGUE, **options) == RENDERED


def test_keep_thinking_without_tools_or_system_message_is_plain_chatml(keep_thinking):
    for messages in (DIALOGUE[:3], DIALOGUE[1:3]):
        expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        assert keep_thinking.apply_chat_template(messages, tokenize=False) == expected


def test_keep_thinking_only_appends_wherever_a_turn_begins_or_ends(keep_thinking):
    # Not after the first of two tool results: nobody speaks there.
    counts = [(2, True), (3, False), (5, True), (6, False), (7, True)]
    ids = [
        keep_thinking.apply_chat_template(
            DIALOGUE[:count], tools=TOOLS, add_generation_prompt=opens, tokenize=True, return_dict=False
        )
        for count, opens in counts
    ]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(ids))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": "", "tool_calls": [1]}, "write calls and thoughts into the content"),
        ({"role": "assistant", "content": "x", "reasoning_content": "y"}, "write calls and thoughts into the content"),
        ({"role": "ipython", "content": "x"}, "ipython"),
    ],
)
def test_keep_thinking_refuses_what_it_would_leave_out(keep_thinking, message, reason):
    with pytest.raises(Exception, match=reason):
        keep_thinking.apply_chat_template([message], tokenize=False)


@pytest.mark.parametrize("template", [PLAIN, read_template("keep_thinking", "default")], ids=["chatml", "ours"])
def test_a_template_that_appends_and_keeps_thoughts_has_no_findings(tokenizer, template):
    tokenizer.chat_template = template
    assert check_template(tokenizer) == []


@pytest.mark.parametrize(
    ("template", "findings"),
    [
        (STRIPS, ["with 6 messages it rewrites what it rendered of 5", "drops the thoughts of earlier turns"]),
        (ALWAYS_STRIPS, ["drops the thoughts of earlier turns, that of message 2 first"]),
        (COUNTS, [f"with {count + 1} messages it rewrites what it rendered of {count}" for count in (2, 3, 4, 5)]),
        (CLOSES, [f"with {count + 1} messages it rewrites what it rendered of {count}" for count in (2, 4)]),
        (REWRITES, ["changes the text of earlier turns"]),
        (REFUSES, ["refuses a dialogue with a system message, calls and tool results: no tools, please"]),
    ],
    ids=["strips earlier thoughts", "strips all", "counts", "closes the thought", "rewrites", "refuses"],
)
def test_each_broken_rule_is_a_finding_with_the_fix(tokenizer, template, findings):
    tokenizer.chat_template = template
    found = check_template(tokenizer)
    assert len(found) == len(findings), found
    for finding, words in zip(found, findings, strict=True):
        assert words in finding and "data.chat_template=keep_thinking" in finding


def test_thoughts_are_looked_for_in_order_and_equal_ones_counted():
    twice = [{"role": "assistant", "content": "<think> same </think> a"}] * 2
    assert dropped_thought(twice, "<think>\nsame\n</think>\n\na <think>\nsame\n</think>\n\na") is None
    assert dropped_thought(twice, "a <think>\nsame\n</think>\n\na") == 1
    assert dropped_thought([{"role": "user", "content": "<think> x </think>"}], "") is None
    assert dropped_thought([{"role": "assistant", "content": "<think>\n\n</think> a"}], "a") is None


def test_without_a_configured_template_the_tokenizers_own_stays(tokenizer):
    assert read_tokenizer(config(None)).chat_template == tokenizer.chat_template


def test_the_template_of_a_file_is_set(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(PLAIN)
    assert read_tokenizer(config(str(path))).chat_template == PLAIN


def test_keep_thinking_is_set_by_its_name():
    template = read_tokenizer(config("keep_thinking")).chat_template
    assert "<tool_response>" in template and "reasoning_content" in template


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: .*No such file"),
        (b"\xff", "cannot be read: "),
        (b" \n", "is empty"),
        (b"{% for %}", r"is not valid Jinja, line 1"),
    ],
)
def test_a_template_file_that_cannot_be_used_is_refused_with_the_place(tmp_path, content, reason):
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    settings = replace(config(str(path)), sources={"data.chat_template": "run.yaml:7"})
    with pytest.raises(ConfigError, match=reason) as error:
        read_tokenizer(settings)
    assert str(path) in str(error.value) and "run.yaml:7" in str(error.value)


def test_a_template_that_refuses_a_lone_question_is_not_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{{ raise_exception('a system message first') }}")
    assert read_tokenizer(config(str(path))).chat_template == path.read_text()


def test_the_models_tokenizer_never_runs_code(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Mine: ...\n")
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(CheckpointError, match="model.path="):
        read_tokenizer(Config(model=ModelConfig(path=str(tmp_path))))
    assert not marker.exists()
