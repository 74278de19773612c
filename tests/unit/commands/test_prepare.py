"""The `prepare` command: from a data set's file to one that training loads, with everything left out counted."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from rest_megatron.commands import prepare
from rest_megatron.data.prompts import load_prompts
from rest_megatron.data.template import read_template
from rest_megatron.errors import ConfigError, DataError
from rest_megatron.reward.paper import parse_ground_truth
from tests.paths import ROOT
from tests.unit.commands.preparing import EXAMPLES, TOOLS, prepared, xlam

SHARED = ROOT.parent / "shared" / "data" / "multiturn"
MODEL = ROOT / "examples" / "quickstart" / "model"


@pytest.fixture
def run(tmp_path):
    """`run(records, source, suffix, answer_format)`: (rows written, what was reported)."""

    def run(records, source="xlam", suffix=".jsonl", answer_format="toolrl"):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(record if isinstance(record, str) else json.dumps(record) + "\n" for record in records))
        return prepared(path, tmp_path / f"out{suffix}", source, answer_format)

    return run


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_have_toolrls_schema(run, suffix):
    (row,), report = run([xlam()], suffix=suffix)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert '1. Name: f\nDescription: \nParameters: {"a": {"type": "int"}}\n' in row["prompt"][0]["content"]
    assert row["prompt"][1]["content"] == "**Dialogue Records History**\n<user> q </user>"
    truth = row["reward_model"]["ground_truth"]
    assert '<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>' in truth
    assert row["extra_info"] == {
        "split": "train",
        "index": 0,
        "source": "xlam:3:0",
        "instruction": row["prompt"][0]["content"],
        "input": row["prompt"][1]["content"],
        "output": truth,
    }
    assert (row["data_source"], row["ability"], row["reward_model"]["style"]) == ("rlla", "math", "rule")
    assert "1 row from 1 xlam record" in report


def test_what_is_left_out_is_counted_by_reason_and_bad_records_are_numbered(run):
    unscorable = json.dumps([{"name": "f", "arguments": {"a": float("nan")}}])
    records = [xlam(), xlam("g"), "{oops\n", "\n", xlam("h"), xlam(tools="[]"), xlam(answers=unscorable), [1], xlam()]
    rows, report = run([*records, *[xlam(query=" ")] * 5])
    assert [row["extra_info"]["index"] for row in rows] == [0, 1]
    assert "2 rows from 13 xlam records" in report
    assert "4 actions left out" in report
    assert "2 x calls a tool that is not on offer" in report
    assert "1 x no tools on offer" in report
    assert "1 x ground truth is not a readable action: bad_number" in report
    assert "7 records cannot be read" in report
    assert "row 2 (line 3): is not valid JSON" in report and "row 6 (line 8): is list [1], must be an object" in report
    assert "row 7 (line 9)" not in report and "row 8 (line 10): field 'query'" in report and "and 2 more" in report


def test_a_row_that_training_would_refuse_is_left_out(run):
    closing = json.dumps([{"name": "f", "arguments": {"a": "\ud800"}}])
    rows, report = run(
        [xlam(query="a\ud800"), xlam(), xlam(tools=TOOLS.replace("{", '{"description": "\\ud83d", ', 1))]
    )
    assert len(rows) == 1 and report.count("lone surrogate U+D8") == 2
    rows, report = run([xlam(answers=closing), xlam()])
    assert len(rows) == 1 and "'ground_truth' has the lone surrogate U+D800" in report


@pytest.mark.parametrize("source", ["toolace", "xlam", "hammer", "sharegpt", "openai", "typed"])
def test_nothing_usable_is_refused_and_nothing_is_written(run, tmp_path, source):
    with pytest.raises(DataError, match=f"none of 2 {source} records is usable") as error:
        run([{"x": 1}, {"y": 2}], source)
    assert "row 1 (line 2): field" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_unknown_output_is_refused(run):
    with pytest.raises(ConfigError, match=r"out.csv ends in '.csv'; rows are written to .parquet, .jsonl"):
        run([xlam()], suffix=".csv")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("in.jsonl", b"", "holds no rows"), ("in.csv", b"x", "rows are read from"), ("in.json", b"{", "not valid JSON")],
)
def test_an_unusable_file_is_refused(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason):
        prepared(tmp_path / name, tmp_path / "out.jsonl", "xlam")


def test_an_output_that_cannot_be_written_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([xlam()]))
    with pytest.raises(DataError, match="cannot be written"):
        prepared(path, tmp_path / "missing" / "out.jsonl", "xlam")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(DataError, match="is not a file"):
        prepared(path, tmp_path / "d.jsonl", "xlam")
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    path.write_text(json.dumps([xlam("g")]))
    with pytest.raises(DataError, match="none of 1"):
        prepared(path, out, "xlam")
    assert out.read_text() == "old"


def test_json_and_parquet_are_read_too(tmp_path):
    records = [xlam(), xlam(id=4)]
    (tmp_path / "in.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "in.parquet")
    outputs = [prepared(tmp_path / f"in{end}", tmp_path / "out.jsonl", "xlam")[0] for end in (".json", ".parquet")]
    assert outputs[0] == outputs[1] and [r["extra_info"]["source"] for r in outputs[0]] == ["xlam:3:0", "xlam:4:0"]


def test_a_system_message_of_its_own_is_kept_in_native_rows_and_reported_in_toolrls(run):
    record = {
        "messages": [
            {"role": "system", "content": "Today is Monday."},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": TOOLS,
    }
    (row,), report = run([record], "openai", answer_format="hermes")
    assert row["prompt"] == record["messages"][:2] and "system message" not in report
    (row,), report = run([record], "openai")
    assert "Monday" not in json.dumps(row) and "1 records have a system message" in report


def mangled(value, rng):
    """The JSON value with one random place replaced by something else."""
    others = [None, 0, 1.5, True, "", " ", "x", "{", "[]", "<think>", [], {}, [None], {"a": 1}, "\ud800", "</response>"]
    if not value or not isinstance(value, dict | list) or rng.random() < 0.1:
        return rng.choice(others)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    changed = value.copy()
    changed[key] = mangled(value[key], rng)
    return changed


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes", "llama3"])
@pytest.mark.parametrize("source", EXAMPLES)
def test_a_mangled_record_is_a_row_a_dropped_action_or_a_bad_record(source, answer_format):
    rng = random.Random(0)
    whole = prepare.convert([("row 0", EXAMPLES[source])], source, answer_format)
    assert whole.rows and not whole.dropped and not whole.bad_records
    records = [(f"row {number}", mangled(EXAMPLES[source], rng)) for number in range(1000)]
    done = prepare.convert(records, source, answer_format)
    assert done.bad_records and done.rows
    for row in done.rows:
        parse_ground_truth(row["reward_model"]["ground_truth"])
        assert all(message["content"].strip() or message["role"] == "tool" for message in row["prompt"])


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes", "llama3"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("glaive_sharegpt_60.json", "sharegpt", 127),
        ("llamafactory_reason_tool_use_15.jsonl", "typed", 38),  # 40 actions, two of which hold a stray </think>
        ("hammer_masked_example.json", "hammer", 5),
        ("hammerbench_en_examples.json", "hammer", 3),
    ],
)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows are not beside the checkout")
def test_real_records_become_prompts_that_load(tmp_path, name, source, count, suffix, answer_format):
    rows, _ = prepared(SHARED / name, tmp_path / f"out{suffix}", source, answer_format)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = read_template("keep_thinking", "default")
    prompts = load_prompts(tmp_path / f"out{suffix}", tokenizer, max_prompt_tokens=100_000, validate=parse_ground_truth)
    assert len(prompts) == len(rows) == count
    for row, prompt in zip(rows, prompts, strict=True):
        shown = tokenizer.decode(prompt.token_ids)
        assert ("<tools>" in shown) == ("tools" in row) == (answer_format != "toolrl")
        assert all(message["content"] in shown for message in row["prompt"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows are not beside the checkout")
def test_glaives_rows_are_the_expected_ones(tmp_path):
    rows, report = prepared(SHARED / "glaive_sharegpt_60.json", tmp_path / "out.parquet", "sharegpt")
    assert "71 x no tools on offer" in report
    expected = pq.read_table(SHARED / "glaive_decomposed_expected.parquet").to_pylist()
    ours = {str(row["prompt"]): row for row in rows}
    assert len(expected) == 60
    for wanted in expected:
        row = ours[str(wanted["prompt"])]
        assert {**row, "extra_info": None} == {**wanted, "extra_info": None}
        assert row["extra_info"].keys() == wanted["extra_info"].keys()
        for key in ("instruction", "input", "output"):
            assert row["extra_info"][key] == wanted["extra_info"][key]


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes", "llama3"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_source_id_that_is_no_text_is_a_bad_record(run, answer_format, suffix):
    rows, report = run([xlam(id="a\ud800"), xlam(id=0)], suffix=suffix, answer_format=answer_format)
    assert [row["extra_info"]["source"] for row in rows] == ["xlam:0:0"]
    assert "field 'id' has the lone surrogate U+D800" in report


@pytest.mark.parametrize("answer_format", ["toolrl", "hermes", "llama3"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Say <think> first.", "tag_in_response"),
        ("It is </response> now.", "text_outside"),
        ("<tool_call>\n{oops}\n</tool_call>", "its text holds a call"),
        ("[f(a=1)] would do.", "its text holds a call"),
    ],
)
def test_a_row_that_its_own_truth_would_not_satisfy_is_left_out(run, answer_format, text, reason):
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], "tools": TOOLS}
    good = EXAMPLES["openai"]
    rows, report = run([record, good], "openai", answer_format=answer_format)
    assert len(rows) == 2 and reason in report and "1 action left out" in report


def test_an_unusable_step_is_not_rendered(monkeypatch):
    monkeypatch.setattr(prepare, "rlla_row", None)
    done = prepare.convert([("row 0", xlam("g"))], "xlam", "toolrl")
    assert done.dropped == {"calls a tool that is not on offer": 1}
