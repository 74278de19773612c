"""Supervised steps, then reinforcement learning from what they export."""

from tests.faults.jobs import Job
from tests.system.runs import make_run, metrics


def test_a_warm_start_exports_a_model_that_reinforcement_learning_starts_from(tmp_path):
    words = make_run(tmp_path)
    job = Job(["sft", *words], tmp_path)
    assert job.wait() == [0], job.output()
    words += [
        f"model.path={tmp_path / 'run' / 'hf'}",
        "model.random_init=false",
        f"run.dir={tmp_path / 'rest'}",
        f"data.eval={tmp_path / 'rows.jsonl'}",
    ]
    job = Job(["train", *words], tmp_path)
    assert job.wait() == [0], job.output()
    rows = metrics(tmp_path / "rest")
    assert [row["progress"] for row in rows] == [0.5, 1.0]
    assert rows[0]["mismatch/max"] < 1e-4
    for name in (
        "report.html",
        "report.png",
        "config.yaml",
        "eval.jsonl",
        "rollouts/step-2.jsonl",
        "hf/model.safetensors",
        "hf/config.json",
        "hf/tokenizer.json",
    ):
        assert (tmp_path / "rest" / name).stat().st_size > 0
    assert "exact answers" in job.output()
