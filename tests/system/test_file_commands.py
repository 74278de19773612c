"""The commands over files through the command line, one feeding the next."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rest_megatron.cli import main
from tests.paths import MODEL

CALL = '<think> use </think>\n<tool_call>\n{"name": "set_alarm", "parameters": {"day": "Monday"}}\n</tool_call>'


def write(path: Path, lines: list) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_score_reports_a_row_it_cannot_read_and_scores_the_rest(tmp_path, capsys):
    rows = [
        {"response": CALL, "ground_truth": CALL},
        "not json",
        {"response": CALL.replace("Monday", "Friday"), "ground_truth": CALL},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["score", str(path), str(tmp_path / "b.jsonl"), "--step", "50"], {}) == 0
    first, broken, last = read(tmp_path / "b.jsonl")
    # Half of 100 steps: format 1.5, correctness 2.5.
    assert (first["score"], first["format"], first["correctness"], first["reason"]) == (4.0, 1.5, 2.5, "ok")
    assert "line 2" in broken["error"] and "line 2" in capsys.readouterr().out
    assert last["reason"] == "wrong_parameter_values" and last["parts"]["name"] == 1.0 and last["score"] < 4.0


def test_weigh_writes_what_heatmap_shows(tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = [*tokenizer.encode(CALL, add_special_tokens=False), tokenizer.eos_token_id]
    entropy = [0.1 if i % 2 else 1.0 for i in range(len(ids))]
    path = write(tmp_path / "a.jsonl", [{"ids": ids, "entropy": entropy}, {"ids": ids[:5]}])
    weighed = tmp_path / "b.jsonl"
    assert main(["weigh", str(path), str(weighed), "--tokenizer", str(MODEL), "--progress", "0.5"], {}) == 0
    rows = read(weighed)
    for row, length in zip(rows, (len(ids), 5), strict=True):
        assert len(row["weights"]) == len(row["regions"]) == length
        assert sum(row["weights"]) == pytest.approx(length, rel=1e-6)
    assert set(rows[0]["regions"]) == {"format", "tool_name", "parameters", "cot"}
    capsys.readouterr()
    assert main(["heatmap", str(weighed), "--tokenizer", str(MODEL)], {}) == 0
    assert "set_alarm" in capsys.readouterr().out
    page = tmp_path / "c.html"
    assert main(["heatmap", str(weighed), f"--tokenizer={MODEL}", "--row=1", f"--output={page}"], {}) == 0
    assert "<script" not in page.read_text() and "&lt;think&gt;" in page.read_text()


def test_prepare_makes_rows_that_training_reads(tmp_path, capsys):
    tool = {"name": "set_alarm", "description": "Set it.", "parameters": {"day": {"type": "str", "description": "d"}}}
    record = {
        "id": 7,
        "query": "wake me on Monday",
        "tools": json.dumps([tool]),
        "answers": json.dumps([{"name": "set_alarm", "arguments": {"day": "Monday"}}]),
    }
    path = tmp_path / "xlam.json"
    path.write_text(json.dumps([record]))
    rows = tmp_path / "rows.parquet"
    assert main(["prepare", str(path), str(rows), "--source", "xlam"], {}) == 0
    words = [f"data.train={rows}", f"model.path={MODEL}", "data.max_prompt_tokens=4096", f"run.dir={tmp_path / 'run'}"]
    from rest_megatron.commands.inputs import read_prompts
    from rest_megatron.config import load

    (prompt,) = read_prompts(load((), words), AutoTokenizer.from_pretrained(MODEL), str(rows))
    assert '"day": "Monday"' in prompt.ground_truth and "wake me on Monday" in prompt.messages[-1]["content"]


@pytest.mark.parametrize(
    "words, code, problem",
    [
        (["score", "missing.jsonl", "b"], 3, "missing.jsonl"),
        (["score", "--output=b"], 2, "needs INPUT"),
        (["weigh", "a", "b", "--tokenizer=nowhere"], 4, "--tokenizer nowhere does not exist"),
        (["score", "a", "b", "reward.preset=papper"], 2, "did you mean paper"),
    ],
)
def test_what_cannot_work_is_refused_with_its_exit_code(tmp_path, capsys, monkeypatch, words, code, problem):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", [{"ids": [1]}])
    assert main(words, {}) == code
    assert problem in capsys.readouterr().err
