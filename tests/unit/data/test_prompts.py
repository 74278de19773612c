"""Loading prompts: what a good file gives, and what each kind of bad one says."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from rest_megatron.data.prompts import load_prompts
from rest_megatron.errors import ConfigError, DataError
from rest_megatron.reward.paper import parse_ground_truth
from tests.paths import ROOT

SHARED = ROOT.parent / "shared" / "data"
TRUTH = "<think> use get_weather </think>\n<response> sunny </response>"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "examples" / "quickstart" / "model")


@pytest.fixture
def bare_tokenizer():
    """A tokenizer of its own, for tests that change it."""
    return AutoTokenizer.from_pretrained(ROOT / "examples" / "quickstart" / "model")


def row(content="weather in Paris", truth=TRUTH, **extra):
    return {"prompt": [{"role": "user", "content": content}], "reward_model": {"ground_truth": truth}, **extra}


def write(path: Path, rows: list) -> Path:
    """Rows in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path, tokenizer, **settings) -> str:
    """The message of the DataError that loading `path` raises."""
    with pytest.raises(DataError) as error:
        load_prompts(path, tokenizer, **{"max_prompt_tokens": 64, **settings})
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
def test_every_format_gives_the_same_prompts(tmp_path, tokenizer, suffix):
    rows = [row(), row("hello", extra_info={"index": 7})]
    first, second = load_prompts(write(tmp_path / f"p{suffix}", rows), tokenizer, max_prompt_tokens=64)
    assert (first.index, second.index) == (0, 1)
    assert first.messages == ({"role": "user", "content": "weather in Paris"},)
    assert second.messages == ({"role": "user", "content": "hello"},)
    assert first.ground_truth == TRUTH
    assert tokenizer.decode(first.token_ids) == (
        "<|im_start|>user\nweather in Paris<|im_end|>\n<|im_start|>assistant\n"
    )


def test_struct_fields_are_taken_by_name_not_by_order(tmp_path, tokenizer):
    kinds = {"role": pa.string(), "content": pa.string()}
    prompts = []
    for order in (["role", "content"], ["content", "role"]):
        message = pa.struct([(name, kinds[name]) for name in order])
        truth = pa.struct([("ground_truth", pa.string())])
        schema = pa.schema([("prompt", pa.list_(message)), ("reward_model", truth)])
        path = tmp_path / f"{order[0]}.parquet"
        pq.write_table(pa.Table.from_pylist([row()], schema=schema), path)
        prompts.append(load_prompts(path, tokenizer, max_prompt_tokens=64))
    assert prompts[0] == prompts[1]


def test_jsonl_lines_end_at_line_feeds_only(tmp_path, tokenizer):
    path = tmp_path / "p.jsonl"
    content = "weather in\u2028Paris"
    line = json.dumps(row(content), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\n" + line.encode())
    prompts = load_prompts(path, tokenizer, max_prompt_tokens=64)
    assert [p.messages[0]["content"] for p in prompts] == [content, content]
    assert [p.index for p in prompts] == [0, 1]


@pytest.mark.parametrize(
    ("bad", "fragments"),
    [
        ({"reward_model": {"ground_truth": TRUTH}}, ["'prompt' is missing"]),
        ({"prompt": row()["prompt"]}, ["'reward_model' is missing"]),
        (row() | {"reward_model": {"style": "rule"}}, ["'ground_truth' is missing"]),
        (row() | {"reward_model": "x"}, ["'reward_model' is str 'x', must be a dict"]),
        (row(truth=3), ["'ground_truth' is int 3, must be a str"]),
        (row(truth=" "), ["'ground_truth'", "must not be blank"]),
        (row() | {"prompt": "weather"}, ["'prompt' is str 'weather', must be a list"]),
        (row() | {"prompt": []}, ["'prompt' is an empty list"]),
        (row() | {"prompt": ["hi"]}, ["prompt[0] is str 'hi', must be an object"]),
        (row(" \n"), ["prompt[0]: field 'content'", "must not be blank"]),
        (row(None), ["prompt[0]: field 'content' is missing"]),
        (row("a\ud800"), ["prompt[0]: field 'content'", "U+D800 at character 1"]),
        (row() | {"prompt": [{"role": "usr", "content": "x"}]}, ["role 'usr'", "system, user, assistant, tool"]),
        (row() | {"prompt": [{"role": "user", "content": "x", "tool_calls": [1]}]}, ["field 'tool_calls'"]),
        (row() | {"prompt": [{"role": "assistant", "content": "x"}]}, ["last message", "assistant"]),
        (row() | {"tools": "[{"}, ["'tools' is not valid JSON"]),
        (row() | {"tools": {"name": "f"}}, ["'tools' is dict", "must be a list of objects"]),
        (row() | {"tools": ["f"]}, ["'tools' is list ['f']", "must be a list of objects"]),
        ([1, 2], ["is list [1, 2], must be an object with the fields prompt, reward_model"]),
    ],
)
def test_a_bad_row_is_named_with_its_value_and_the_rule(tmp_path, tokenizer, bad, fragments):
    message = refusal(write(tmp_path / "p.jsonl", [row(), bad]), tokenizer)
    assert "1 of 2 rows" in message and "row 1 (line 2)" in message
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    "line",
    [b'{"prompt": [', b"\xff\xfe", b"[" * 100_000, b"{'prompt': 1}"],
    ids=["truncated", "not UTF-8", "deeply nested", "Python, not JSON"],
)
def test_a_line_that_is_not_json_is_named_with_its_number(tmp_path, tokenizer, line):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(row()).encode() + b"\n\n" + line + b"\n")
    message = refusal(path, tokenizer)
    assert "row 1 (line 3): is not valid JSON" in message


def test_all_bad_rows_are_counted_and_the_first_five_shown(tmp_path, tokenizer):
    rows = [row()] + [row(" ")] * 8
    message = refusal(write(tmp_path / "p.parquet", rows), tokenizer)
    assert "8 of 9 rows" in message and "and 3 more" in message
    assert [f"row {index}:" in message for index in range(7)] == [False, True, True, True, True, True, False]


def test_a_ground_truth_that_cannot_be_scored_is_refused_with_the_reason(tmp_path, tokenizer):
    path = write(tmp_path / "p.jsonl", [row(), row(truth="<tool_call>\n{oops\n</tool_call>")])
    message = refusal(path, tokenizer, validate=parse_ground_truth)
    assert "row 1 (line 2)" in message and "oops" in message and "bad_json" in message


def test_an_overlong_prompt_is_refused_with_both_numbers_and_the_fix(tmp_path, tokenizer):
    path = write(tmp_path / "p.jsonl", [row(), row("weather " * 80)])
    length = len(load_prompts(path, tokenizer, max_prompt_tokens=1000)[1].token_ids)
    message = refusal(path, tokenizer)
    assert f"the prompt has {length} tokens, data.max_prompt_tokens=64" in message
    assert "data.overlong=drop" in message and "row 1" in message


def test_overlong_prompts_can_be_dropped_and_are_counted(tmp_path, tokenizer, caplog):
    path = write(tmp_path / "p.jsonl", [row("weather " * 80), row(), row("hotel " * 80)])
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(path, tokenizer, max_prompt_tokens=64, overlong="drop")
    assert [p.index for p in prompts] == [1]
    assert "dropped 2 of 3 rows" in caplog.text


def test_a_prompt_of_exactly_the_limit_fits(tmp_path, tokenizer):
    path = write(tmp_path / "p.jsonl", [row()])
    length = len(load_prompts(path, tokenizer, max_prompt_tokens=1000)[0].token_ids)
    assert len(load_prompts(path, tokenizer, max_prompt_tokens=length)) == 1
    assert f"has {length} tokens" in refusal(path, tokenizer, max_prompt_tokens=length - 1)


def test_dropping_everything_is_refused(tmp_path, tokenizer):
    path = write(tmp_path / "p.jsonl", [row()])
    assert "all 1 rows" in refusal(path, tokenizer, max_prompt_tokens=2, overlong="drop")


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("p.jsonl", b"", "holds no rows"),
        ("p.jsonl", b"\n \n", "holds no rows"),
        ("p.json", b"[]", "holds no rows"),
        ("p.json", b'{"prompt": 1}', "must be a list of rows"),
        ("p.json", b"[{", "is not valid JSON"),
        ("p.parquet", b"", "is not a readable parquet file"),
        ("p.parquet", b"PAR1 no parquet PAR1", "is not a readable parquet file"),
        ("p.csv", b"prompt\n", ".parquet, .jsonl, .json"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, tokenizer, name, content, fragment):
    path = tmp_path / name
    path.write_bytes(content)
    assert fragment in refusal(path, tokenizer)


def test_a_cut_parquet_file_is_refused(tmp_path, tokenizer):
    path = write(tmp_path / "p.parquet", [row()] * 20)
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a readable parquet file" in refusal(path, tokenizer)


def test_a_parquet_file_without_the_columns_is_refused(tmp_path, tokenizer):
    assert "'prompt' is missing" in refusal(write(tmp_path / "p.parquet", [{"text": "x"}]), tokenizer)


def test_a_missing_file_and_a_directory_are_refused(tmp_path, tokenizer):
    assert "does not exist" in refusal(tmp_path / "p.jsonl", tokenizer)
    (tmp_path / "d.jsonl").mkdir()
    assert "is not a file" in refusal(tmp_path / "d.jsonl", tokenizer)


def test_messages_the_template_refuses_are_a_bad_row(tmp_path, bare_tokenizer):
    bare_tokenizer.chat_template = "{{ raise_exception('no system message, please') }}"
    message = refusal(write(tmp_path / "p.jsonl", [row()]), bare_tokenizer)
    assert "row 0 (line 1): the chat template refuses the messages: no system message, please" in message


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("dump", [json.dumps, list], ids=["JSON", "list"])
def test_tools_of_a_row_are_announced_by_the_template(tmp_path, bare_tokenizer, suffix, dump):
    bare_tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}{{ messages[0].content }}"
    )
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    path = write(tmp_path / f"p{suffix}", [row(tools=dump(tools)), row(tools=None), row(tools=dump([]))])
    shown = [bare_tokenizer.decode(p.token_ids) for p in load_prompts(path, bare_tokenizer, max_prompt_tokens=64)]
    assert shown == ["f;g;weather in Paris", "weather in Paris", "weather in Paris"]


def test_an_earlier_thought_that_the_template_drops_is_a_bad_row_with_the_fix(tmp_path, bare_tokenizer):
    dialogue = [
        {"role": "user", "content": "weather in Paris"},
        {"role": "assistant", "content": "<think> the tool knows </think>\n<tool_call>\n{}\n</tool_call>"},
        {"role": "tool", "content": ""},
    ]
    path = write(tmp_path / "p.jsonl", [row(), row() | {"prompt": dialogue}])
    kept = load_prompts(path, bare_tokenizer, max_prompt_tokens=64)[1]
    assert "the tool knows" in bare_tokenizer.decode(kept.token_ids)
    bare_tokenizer.chat_template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    message = refusal(path, bare_tokenizer)
    assert "1 of 2 rows" in message and "row 1 (line 2): the chat template drops the thought of prompt[1]" in message
    assert "data.chat_template=keep_thinking" in message


@pytest.mark.parametrize(
    ("attribute", "fix"), [("chat_template", "chat_template.jinja"), ("eos_token", "tokenizer_config.json")]
)
def test_a_tokenizer_without_template_or_end_of_turn_is_refused_with_the_fix(tmp_path, bare_tokenizer, attribute, fix):
    setattr(bare_tokenizer, attribute, None)
    with pytest.raises(ConfigError, match=fix):
        load_prompts(write(tmp_path / "p.jsonl", [row()]), bare_tokenizer, max_prompt_tokens=64)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rlla rows are not beside the checkout")
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(("name", "count"), [("rlla_train_sample.parquet", 157), ("test.parquet", 80)])
def test_real_rlla_rows_load(tmp_path, tokenizer, name, count, suffix):
    raw = pq.read_table(SHARED / name).to_pylist()
    path = write(tmp_path / f"p{suffix}", raw) if suffix == ".jsonl" else SHARED / name
    prompts = load_prompts(path, tokenizer, max_prompt_tokens=100_000, validate=parse_ground_truth)
    assert len(prompts) == count
    assert [[m["role"] for m in p.messages] for p in prompts] == [["system", "user"]] * count
    assert [p.messages[1]["content"] for p in prompts] == [r["extra_info"]["input"] for r in raw]
    assert [p.ground_truth for p in prompts] == [r["extra_info"]["output"] for r in raw]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rlla rows are not beside the checkout")
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_bad_rows_among_real_ones_are_named_with_their_numbers(tmp_path, tokenizer, suffix):
    raw = pq.read_table(SHARED / "test.parquet").to_pylist()
    raw[7]["reward_model"]["ground_truth"] = "<think> x </think>\n<tool_call>\n{'name'\n</tool_call>"
    raw[41]["prompt"][1]["content"] = None
    raw[79]["prompt"] = []
    path = write(tmp_path / f"p{suffix}", raw)
    message = refusal(path, tokenizer, max_prompt_tokens=100_000, validate=parse_ground_truth)
    assert "3 of 80 rows" in message
    rows = [7, 41, 79]
    where = [f"row {row}:" if suffix == ".parquet" else f"row {row} (line {row + 1}):" for row in rows]
    assert all(words in message for words in where), message
