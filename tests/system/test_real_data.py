"""The main job on real input: ToolRL rows, the 151,936-entry Qwen vocabulary, TP 2 x PP 2."""

import json
import math

import pytest

from tests.faults.jobs import Job
from tests.real_model import SHARED, make_qwen3
from tests.system.runs import metrics

ROWS = SHARED / "rlla_train_sample.parquet"
pytestmark = pytest.mark.skipif(not ROWS.exists(), reason=f"real rows are not on this machine: {ROWS}")


def test_two_steps_on_real_rows(tmp_path):
    model = make_qwen3(tmp_path / "model")
    words = [
        f"model.path={model}",
        "model.random_init=true",
        "run.device=cpu",
        f"run.dir={tmp_path / 'run'}",
        f"data.train={ROWS}",
        "parallel={tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2, sequence_parallel: true}",
        "rollout={prompts_per_step: 2, group_size: 2, max_new_tokens: 8}",
        "train={steps: 2, mini_batch_size: 2, max_tokens_per_micro_batch: 2304}",
        # Without it answers that all score the same would be left out of the updates.
        "algorithm.entropy_coef=0.001",
    ]
    job = Job(["train", *words], tmp_path, ranks=4)
    assert set(job.wait(240)) == {0}, job.output()
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        # A freshly drawn policy is close to uniform over the vocabulary.
        assert row["actor/entropy"] == pytest.approx(math.log(151_936), rel=1e-2)
        assert row["mismatch/max"] < 0.05
        assert 0 < row["actor/grad_norm"] < math.inf
    answers = [json.loads(line) for line in (tmp_path / "run/rollouts/step-2.jsonl").read_text().splitlines()]
    assert len(answers) == 4
    assert all(len(answer["ids"]) == len(answer["log_probs"]) for answer in answers)
    assert max(max(answer["ids"]) for answer in answers) < 151_936
    assert (tmp_path / "run" / "hf" / "model.safetensors.index.json").exists()
