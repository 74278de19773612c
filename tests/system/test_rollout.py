"""Answers without training, the way a user asks for them."""

import json

from tests.faults.jobs import Job
from tests.system.runs import make_run, metrics


def test_rollout_writes_every_answer_and_sums_them_up(tmp_path):
    words = [*make_run(tmp_path), "rollout.prompts_per_step=3"]
    job = Job(["rollout", *words], tmp_path)
    assert job.wait() == [0], job.output()
    said = job.output().splitlines()
    rows = [json.loads(line) for line in (tmp_path / "run/rollout.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(len(row["ids"]) == len(row["log_probs"]) <= 32 and row["weight_version"] == 0 for row in rows)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
    assert [line[:8] for line in said if line.startswith("step ")] == ["step 1/2", "step 2/2"]
    table = dict(line.split() for line in said if line.startswith(("reward/", "rollout/")))
    assert float(table["rollout/answers"]) == 8 and float(table["rollout/tokens_per_second"]) > 0
    assert {"reward/mean", "reward/format", "rollout/length", "rollout/stopped"} <= table.keys()
    again = Job(["rollout", *words], tmp_path)
    assert again.wait() == [2] and "of an earlier run" in again.output()
    assert rows == [json.loads(line) for line in (tmp_path / "run/rollout.jsonl").read_text().splitlines()]
