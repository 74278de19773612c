"""prepare on parquet, which pads objects and holds what is not JSON."""

import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest_megatron.commands import prepare
from rest_megatron.errors import DataError
from tests.unit.commands.preparing import EXAMPLES, TOOLS, prepared, xlam


def parquet(tmp_path, rows, source, schema=None):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return prepared(path, tmp_path / "out.jsonl", source)


NESTED = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": 1}}]
FLAT = [{"name": "f", "arguments": '{"a": 1}'}]
ASKED = {"role": "user", "content": "q", "tool_calls": None}


@pytest.mark.parametrize(
    ("source", "row", "column"),
    [
        ("xlam", xlam(answers=NESTED), "answers[].arguments"),
        ("xlam", xlam(tools=json.loads(TOOLS)), "tools[].parameters"),
        ("sharegpt", EXAMPLES["sharegpt"] | {"tools": json.loads(TOOLS)}, "tools[].parameters"),
        (
            "openai",
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": NESTED[0]}]}], "tools": TOOLS},
            "messages[].tool_calls[].function.arguments",
        ),
    ],
)
def test_objects_that_parquet_pads_are_refused(tmp_path, source, row, column):
    with pytest.raises(DataError) as error:
        parquet(tmp_path, [row], source)
    assert f"column {column} is a struct" in str(error.value) and "Save it as JSONL" in str(error.value)


@pytest.mark.parametrize(
    ("source", "row"),
    [
        ("xlam", xlam(answers=FLAT)),
        ("sharegpt", EXAMPLES["sharegpt"]),
        ("toolace", EXAMPLES["toolace"] | {"meta": {"arguments": {"a": 1}}}),
        (
            "openai",
            {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": FLAT[0]}]}], "tools": TOOLS},
        ),
    ],
)
def test_objects_with_the_same_keys_everywhere_may_come_from_parquet(tmp_path, source, row):
    assert parquet(tmp_path, [row], source)[0]


def test_values_that_are_no_json_make_bad_records_only_where_they_are_read(tmp_path):
    noon = datetime(2024, 5, 1, 12)
    rows, report = parquet(tmp_path, [xlam(made=noon), xlam(query=None)], "xlam")
    assert len(rows) == 1 and "1 record cannot be read" in report
    record = xlam(answers=[{"name": "f", "arguments": {"a": noon}}])
    done = prepare.convert([("row 0", record)], "xlam", "toolrl")
    assert "row 0: answers[0].arguments is not JSON" in done.bad_records[0]
