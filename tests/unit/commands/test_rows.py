"""`rest_megatron.commands.rows`: files of one JSON object per line."""

import io
import json

import pytest

from rest_megatron.commands.rows import process
from rest_megatron.data.rows import BadRow
from rest_megatron.errors import DataError


@pytest.mark.parametrize("content", [None, b"", b"\n \n"])
def test_an_input_without_rows_is_refused_and_leaves_no_output(tmp_path, content):
    source, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(DataError, match="a.jsonl"):
        process(source, output, io.StringIO(), lambda row: row)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.jsonl"}


def test_the_output_appears_only_when_it_is_complete(tmp_path):
    source, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text('{"n": 1}\n{"n": 2}\n')
    output.write_text("before")

    def convert(row):
        assert output.read_text() == "before"
        if row["n"] == 2:
            raise RuntimeError("a bug")
        return row

    with pytest.raises(RuntimeError, match="a bug"):
        process(source, output, io.StringIO(), convert)
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}


def test_a_file_may_be_written_over_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}')
    process(path, path, io.StringIO(), lambda row: {"n": row["n"] + 1})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"n": 2}, {"n": 3}]


def test_a_reason_of_the_row_is_reported_with_its_line(tmp_path):
    source, output, stream = tmp_path / "a.jsonl", tmp_path / "b.jsonl", io.StringIO()
    source.write_bytes(b'\xef\xbb\xbf{"n": 1}\n\n{"n": "\\ud800"}\n\xff\n')

    def convert(row):
        if row["n"] == 1:
            raise BadRow("is the first")
        return row

    process(source, output, stream, convert)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[:2] == [{"error": "line 1: is the first"}, {"n": "\ud800"}]
    assert rows[2]["error"].startswith("line 4: is not valid JSON")
    assert stream.getvalue().count("is the first") == 1


def test_an_input_of_which_no_row_can_be_used_is_refused_and_leaves_the_output_as_it_was(tmp_path):
    source, output, stream = tmp_path / "a.jsonl", tmp_path / "b.jsonl", io.StringIO()
    source.write_text('\n{"n": 1}\n[2]\n')
    output.write_text("before")

    def convert(row):
        raise BadRow("has no x")

    with pytest.raises(
        DataError, match=r"a\.jsonl: none of its 2 rows can be used; the first, line 2: has no x\. .*--help"
    ):
        process(source, output, stream, convert)
    assert output.read_text() == "before" and len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize("output", ["missing/b.jsonl", ".", "a.jsonl/b.jsonl", "x" * 250, "loop"])
def test_an_output_that_cannot_be_written_is_refused(tmp_path, output):
    source = tmp_path / "a.jsonl"
    source.write_text("{}\n")
    (tmp_path / "loop").symlink_to("loop/x")
    with pytest.raises(DataError, match=output):
        process(source, tmp_path / output, io.StringIO(), lambda row: row)


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_a_line_nested_too_deep_is_one_bad_row(tmp_path, depth):
    source, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text(f'{{"n": {"[" * depth}{"]" * depth}}}\n{{"n": 1}}\n')
    process(source, output, io.StringIO(), lambda row: {"n": 1})
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows[1] == {"n": 1} and rows[0].get("error", "line 1: is not valid JSON").startswith("line 1: is not valid")
