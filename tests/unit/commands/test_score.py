"""`rest_megatron score`: rewards of answers in a file."""

import io
import json
from pathlib import Path

import pytest

from rest_megatron.commands.catalogue import Score
from rest_megatron.commands.score import main
from rest_megatron.config import load
from rest_megatron.errors import ConfigError, DataError
from tests.paths import SHARED

GOLDEN = SHARED / "golden" / "reward.jsonl"
CALL = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>'
ROW = {"response": CALL, "ground_truth": CALL}
PARTS = {"format": 1.0, "name": 1.0, "parameter_names": 1.0, "parameter_values": 1.0, "exact": 1.0}


def run(tmp_path: Path, lines: list, *overrides: str, **arguments) -> tuple[list[dict], str]:
    """(output rows, what was written to the stream)."""
    options = Score(input=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", **arguments)
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    options.input.write_bytes(b"\n".join(rows) + b"\n")
    stream = io.StringIO()
    main(load([], overrides), options, stream)
    return [json.loads(line) for line in options.output.read_text().splitlines()], stream.getvalue()


def test_each_row_becomes_its_score(tmp_path):
    wrong = {"response": CALL.replace("1", "2"), "ground_truth": CALL, "id": 7}
    rows, _ = run(tmp_path, [ROW, wrong], progress=0.5)
    assert rows[0] == {"score": 4.0, "format": 1.5, "correctness": 2.5, "parts": PARTS, "reason": "ok"}
    assert rows[1]["correctness"] == pytest.approx(2.5 * (2 * 2 / 3 - 1))
    assert rows[1]["parts"] == PARTS | {"parameter_values": 0.0, "exact": 0.0}
    assert rows[1]["reason"] == "wrong_parameter_values"


def test_presets_follow_progress_and_step(tmp_path):
    def score(*overrides: str) -> float:
        return run(tmp_path, [ROW | {"response": ""}], *overrides, "train.steps=150", step=75)[0][0]["score"]

    assert score() == -2.5
    assert score("reward.ramp=none") == -3.0
    assert score("reward.preset=poster") == 0.0
    assert score("reward.preset=reference") == -1.0 - 2.5
    assert score("reward.preset=reference", "reward.reference_variant=coarse", "reward.ramp=none") == -3.0


@pytest.mark.parametrize(
    "bad, reason",
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "must be an object"),
        (b'{"response": "\xff", "ground_truth": "x"}', "is not valid JSON"),
        ({"response": CALL}, "field 'ground_truth' is missing"),
        ({"ground_truth": CALL}, "field 'response' is missing"),
        ({"response": 3, "ground_truth": CALL}, "field 'response' is int 3, must be a str"),
        ({"response": CALL, "ground_truth": [CALL]}, "field 'ground_truth' is list"),
        ({"response": CALL, "ground_truth": "nothing"}, "ground_truth str 'nothing': ground truth is not a readable"),
        ({"response": CALL, "ground_truth": "\ud800"}, "ground_truth str '\\ud800': "),
        (ROW | {"think_open": "yes"}, "field 'think_open' is str 'yes', must be a bool"),
    ],
)
def test_a_bad_row_is_reported_and_the_rest_is_scored(tmp_path, bad, reason):
    rows, said = run(tmp_path, [ROW, bad, ROW])
    assert [row.get("score") for row in rows] == [4.0, None, 4.0]
    assert rows[1]["error"].startswith("line 2: ") and reason in rows[1]["error"]
    assert said.splitlines()[0] == rows[1]["error"]
    assert "3 rows, 1 of them" in said


@pytest.mark.parametrize("preset", ["paper", "reference", "poster"])
def test_a_response_may_be_any_text(tmp_path, preset):
    texts = ["", "\ud800", "\0", CALL.replace(" t ", "\udfff"), "\u202e\u200b", "<think>" * 20_000]
    rows, _ = run(tmp_path, [ROW | {"response": text} for text in texts], f"reward.preset={preset}", progress=0.25)
    assert all("error" not in row for row in rows)
    assert rows[3]["reason"] == "ok"


def test_answers_may_follow_another_grammar(tmp_path):
    hermes = ROW | {"response": CALL.replace("parameters", "arguments")}
    assert run(tmp_path, [hermes], "data.answer_format=hermes")[0][0]["reason"] == "ok"


def test_a_user_function_scores_too_and_its_bugs_end_the_command(tmp_path):
    (tmp_path / "mine.py").write_text("def f(response, ground_truth, *, progress, step):\n    return int(response)\n")
    override = f"reward.function={tmp_path / 'mine.py'}:f"
    rows, _ = run(tmp_path, [{"response": "7", "ground_truth": "x"}], override)
    assert rows == [{"score": 7.0, "format": 0.0, "correctness": 7.0, "parts": {}, "reason": "ok"}]
    before = (tmp_path / "out.jsonl").read_text()
    with pytest.raises(DataError, match="raised ValueError.*the response 'seven'"):
        run(tmp_path, [{"response": "seven", "ground_truth": "x"}], override)
    assert (tmp_path / "out.jsonl").read_text() == before
    with pytest.raises(ConfigError, match="is missing in"):
        run(tmp_path, [ROW], override + "g")


def test_an_input_that_is_missing_or_empty_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no rows"):
        run(tmp_path, [])
    with pytest.raises(DataError, match="cannot be read"):
        main(load(), Score(input=tmp_path / "absent.jsonl", output=tmp_path / "out.jsonl"), io.StringIO())
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/data/golden")
@pytest.mark.parametrize("step", [0, 30, 150])
def test_the_published_scores_come_out_of_the_command(tmp_path, step):
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    rows, said = run(tmp_path, cases, "reward.preset=reference", step=step)
    assert len(rows) == len(cases)
    for case, row in zip(cases, rows, strict=True):
        expected = case["scores"]["1"][str(step)]
        if isinstance(expected, dict):
            assert "bad_json" in row["error"]
        else:
            assert [row["score"], row["format"], row["correctness"]] == pytest.approx(expected, abs=1e-9)
    assert said.count("bad_json") == sum("error" in row for row in rows) > 0


@pytest.mark.parametrize("preset", ["paper", "reference", "poster"])
def test_the_prompt_may_have_opened_the_thought(tmp_path, preset):
    answer = ROW | {"response": CALL.removeprefix("<think>")}
    rows, _ = run(tmp_path, [answer, answer | {"think_open": True}], f"reward.preset={preset}", progress=0.5)
    assert [row["parts"]["format"] for row in rows] == [0.0, 1.0]


def test_an_opened_thought_is_refused_where_answers_have_none(tmp_path):
    rows, _ = run(tmp_path, [ROW | {"think_open": True}, ROW], "data.answer_format=llama3")
    assert "'think_open' is true, but answers in this data.answer_format have no thought" in rows[0]["error"]
    assert "error" not in rows[1]
