"""The budget of updates that are skipped because they are not finite."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import NonFiniteError
from rest_megatron.step.nonfinite import count_skipped
from rest_megatron.types import PolicyStreams, Trajectory

ALONE = Parallel(torch.device("cpu"), 0, 1, 1, 0, 1, 0, 1, 0, 1)
GOOD = {"actor/loss": 0.5, "actor/grad_norm": 1.0}
BAD = {"actor/loss": math.nan, "actor/grad_norm": math.inf}
ANSWERS = [Trajectory((1, 2), (3, 4, 5), (True, False, True)), Trajectory((1,), (6,))]


class Run:
    """A run that counts its updates, of which `most` may be skipped in a row."""

    def __init__(self, directory, most: int = 2, parallel: Parallel = ALONE):
        config = SimpleNamespace(train=SimpleNamespace(max_nonfinite=most))
        self.session = SimpleNamespace(run_dir=directory, parallel=parallel, config=config)
        self.state = SimpleNamespace(skipped=0)

    def count(self, step: int, metrics, trajectories, streams=None) -> None:
        count_skipped(self.session, self.state, step, metrics, trajectories, streams)


def test_as_many_skips_in_a_row_as_allowed_pass_and_one_more_ends_the_run(tmp_path):
    run = Run(tmp_path)
    run.count(1, BAD, ANSWERS)
    run.count(1, BAD, ANSWERS)
    with pytest.raises(
        NonFiniteError, match="step 2: loss nan, gradient norm inf: skipped updates in a row: 3, train.max_nonfinite=2"
    ):
        run.count(2, BAD, ANSWERS)


def test_a_finite_update_begins_the_count_anew(tmp_path):
    run = Run(tmp_path)
    for metrics in (BAD, BAD, GOOD, BAD, BAD):
        run.count(1, metrics, ANSWERS)
    assert run.state.skipped == 2


def test_none_may_be_allowed(tmp_path):
    with pytest.raises(NonFiniteError):
        Run(tmp_path, most=0).count(1, BAD, ANSWERS)


def test_the_batch_of_a_skipped_update_is_dumped_with_its_streams(tmp_path):
    streams = PolicyStreams(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, math.nan, 0.0]), torch.ones(3), None)
    Run(tmp_path).count(7, BAD, ANSWERS, streams)
    (path,) = (tmp_path / "nonfinite").iterdir()
    first, second = map(json.loads, path.read_text().splitlines())
    assert path.name == "step-7-skip-1-rank-0.jsonl"
    assert (first["ids"], first["response_mask"], first["old_log_probs"]) == ([3, 4, 5], [True, False, True], [-1, -2])
    assert first["advantages"][0] == 1 and math.isnan(first["advantages"][1])
    assert (second["prompt_ids"], second["old_log_probs"], second["loss_weights"]) == ([1], [-3], [1])
    assert "ref_log_probs" not in first


@pytest.mark.parametrize(("tp_rank", "pp_rank", "written"), [(0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_one_rank_of_a_copy_of_the_model_dumps(tmp_path, tp_rank, pp_rank, written):
    parallel = Parallel(torch.device("cpu"), 0, 8, 2, tp_rank, 2, pp_rank, 2, 1, 1)
    Run(tmp_path, parallel=parallel).count(1, BAD, ANSWERS)
    assert len(list(tmp_path.glob("nonfinite/*-rank-1.jsonl"))) == written


def test_a_dump_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "nonfinite").write_text("no directory")
    Run(tmp_path).count(1, BAD, ANSWERS)
    assert "cannot be written" in caplog.text
