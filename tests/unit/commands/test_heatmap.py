"""The `heatmap` command."""

import io
import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rest_megatron.commands.catalogue import Heatmap
from rest_megatron.commands.heatmap import main
from rest_megatron.errors import CheckpointError, DataError
from tests.unit.observe.shown import Terminal, spans


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A directory with a byte-level tokenizer whose ids are the sorted byte characters."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    directory = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(directory)
    return directory


@pytest.fixture
def dump(tmp_path) -> Path:
    """Three rows, the second of which is no row."""
    path = tmp_path / "step-5.jsonl"
    rows = [{"ids": [i, i + 1], "regions": ["cot"] * 2, "weights": [1.0, 1.0]} for i in (32, 34)]
    path.write_text(f"{json.dumps(rows[0])}\n\n[]\n{json.dumps(rows[1])}\n")
    return path


def show(stream, **arguments) -> None:
    main(Heatmap(**arguments), stream)


@pytest.mark.parametrize("row, text", [(0, "AB"), (2, "CD")])
def test_the_command_shows_the_row_of_that_number(tokenizer, dump, row, text):
    stream = io.StringIO()
    show(stream, input=dump, tokenizer=tokenizer, row=row)
    assert f"[C 1.00]{text}" in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_only_a_terminal_gets_colours(tokenizer, dump):
    stream = Terminal()
    show(stream, input=dump, tokenizer=tokenizer, row=0)
    assert "\x1b[38;5;16;48;5;231;3mAB\x1b[0m" in stream.getvalue()


def test_a_bare_tokenizer_json_is_enough(tokenizer, dump, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    stream = io.StringIO()
    show(stream, input=dump, tokenizer=bare, row=0)
    assert "AB" in stream.getvalue()


def test_the_command_writes_the_page_and_nothing_else(tokenizer, dump):
    stream = io.StringIO()
    output = dump.parent / "answer.html"
    show(stream, input=dump, tokenizer=tokenizer, row=2, output=output)
    assert stream.getvalue() == f"wrote {output}\n"
    assert [text for *_, text in spans(output.read_text())] == ["C", "D"]
    assert "<title>step-5.jsonl, row 2</title>" in output.read_text()
    assert sorted(path.name for path in dump.parent.glob("*")) == ["answer.html", "step-5.jsonl"]


@pytest.mark.parametrize(
    "row, complaint", [(3, "has 3 rows, counted from 0; there is no --row 3"), (1, "--row 1, line 3: is list []")]
)
def test_the_command_refuses_a_row_that_is_not_there(tokenizer, dump, row, complaint):
    with pytest.raises(DataError, match=re.escape(complaint)):
        show(io.StringIO(), input=dump, tokenizer=tokenizer, row=row)


def test_the_command_says_which_row_lacks_what(tokenizer, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"ids": [1], "regions": ["cot"]}\n')
    with pytest.raises(DataError, match="rows.jsonl --row 0: field 'weights' is missing"):
        show(io.StringIO(), input=path, tokenizer=tokenizer)


def test_a_tokenizer_that_is_not_there_is_refused(dump, tmp_path):
    with pytest.raises(CheckpointError, match="Name a Hugging Face directory"):
        show(io.StringIO(), input=dump, tokenizer=tmp_path / "none")


def test_a_tokenizer_never_runs_code(dump, tmp_path, monkeypatch):
    directory, marker = tmp_path / "evil", tmp_path / "ran"
    directory.mkdir()
    (directory / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Mine: ...\n")
    settings = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(CheckpointError, match="--tokenizer "):
        show(io.StringIO(), input=dump, tokenizer=directory)
    assert not marker.exists()


@pytest.mark.parametrize("encoding, shown", [("ascii", r"\xe9 \u6f22"), ("latin-1", "\xe9 \\u6f22"), ("utf-8", "é 漢")])
def test_a_stream_that_lacks_a_character_shows_its_code(tokenizer, tmp_path, encoding, shown):
    ids = PreTrainedTokenizerFast.from_pretrained(tokenizer).encode("é 漢", add_special_tokens=False)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"ids": ids, "regions": ["cot"] * len(ids), "weights": [1.0] * len(ids)}))
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show(stream, input=path, tokenizer=tokenizer, row=0)
    stream.flush()
    assert f"[C 1.00]{shown}" in raw.getvalue().decode(encoding)
