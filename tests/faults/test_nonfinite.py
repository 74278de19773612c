"""Numbers that are not finite, all the way through a run."""

import json
import math

from safetensors.torch import load_file, save_file

TP2 = "parallel.tensor_model_parallel_size=2"


def test_a_run_whose_gradients_stay_infinite_ends_with_77_and_dumps_what_it_skipped(task, start):
    job = start(task.train("optim.lr=1e30", "train.max_nonfinite=1", TP2), ranks=2)
    assert set(job.wait()) == {77}, job.output()
    assert job.output().count("not finite: step 3") == 1 and "Traceback" not in job.output()
    dumps = sorted((task.run_dir / "nonfinite").iterdir())
    assert [path.name for path in dumps] == ["step-2-skip-1-rank-0.jsonl", "step-3-skip-2-rank-0.jsonl"]
    rows = [json.loads(line) for line in dumps[0].read_text().splitlines()]
    assert len(rows) == 4 and all(math.isfinite(x) for row in rows for x in row["advantages"])


def test_the_count_of_skipped_updates_is_resumed_with_the_run(task, start):
    words = task.train("optim.lr=1e30", "train.max_nonfinite=1")
    assert start(words, variables={"FAULT": "reward 3 SIGTERM"}).wait() == [75]
    job = start(words)
    assert job.wait() == [77] and "not finite: step 3" in job.output(), job.output()


def test_weights_that_are_not_finite_end_the_run_before_it_trains(task, start):
    first = start(task.train("train.steps=1"))
    assert first.wait() == [0], first.output()
    path = task.run_dir / "hf" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(tensors, path, {"format": "pt"})
    spoilt = task.at("spoilt")
    job = start(spoilt.train(f"model.path={path.parent}", "model.random_init=false"))
    assert job.wait() == [77], job.output()
    assert "logits are not finite" in job.output() and "Traceback" not in job.output()
    assert (spoilt.run_dir / "metrics.jsonl").read_text() == ""
