"""Answers without training, the way a user asks for them."""

import json

from tests.system.runs import make_run, metrics, program, run


def test_rollout_writes_every_answer_and_sums_them_up(tmp_path):
    words = [*make_run(tmp_path), "rollout.prompts_per_step=3"]
    done = run(program("rollout", *words), tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/rollout.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(len(row["ids"]) == len(row["log_probs"]) <= 32 and row["weight_version"] == 0 for row in rows)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
    assert "step 1/2" in done.stdout and "step 2/2" in done.stdout
    table = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("reward/", "rollout/")))
    assert float(table["rollout/answers"]) == 8 and float(table["rollout/tokens_per_second"]) > 0
    assert {"reward/mean", "reward/format", "rollout/length", "rollout/stopped"} <= table.keys()
    again = run(program("rollout", *words), tmp_path)
    assert again.returncode == 2 and "of an earlier run" in again.stderr
    assert rows == [json.loads(line) for line in (tmp_path / "run/rollout.jsonl").read_text().splitlines()]
