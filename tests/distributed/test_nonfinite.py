"""A loss or gradient that is not finite, on one rank, costs one update; too many of them end the run on all ranks."""

import json
import math

import pytest

from tests.distributed.nonfinite_cases import PLACES, ran, ran_with_broken_statistics
from tests.distributed.training_cases import read_metrics
from tests.distributed.training_runs import SETTINGS
from tests.system.runs import make_run

LAYOUTS = {
    "dp2": (2, ()),
    "tp2": (2, ("parallel.tensor_model_parallel_size=2",)),
    "pp2": (2, ("parallel.pipeline_model_parallel_size=2",)),
}


def words(directory, *more: str) -> list[str]:
    return [*make_run(directory), *SETTINGS, "train.steps=4", "train.gradient_variance_interval=0", *more]


@pytest.mark.parametrize(("place", "value"), [*((place, math.nan) for place in PLACES), ("gradient", math.inf)])
def test_the_update_is_skipped_dumped_and_counted_and_the_run_goes_on(pool, tmp_path, place, value):
    reported = pool.run(ran, 2, words(tmp_path), place, value, (2,), 1)
    rows = read_metrics(tmp_path / "run")
    assert reported == ["", ""]
    assert [row["actor/skipped_updates"] for row in rows] == [0, 1, 0, 0]
    # The weights that sampled the step after are those before: nothing was changed.
    assert [row["rollout/weight_version"] for row in rows] == [0, 1, 1, 2]
    assert all(math.isfinite(row["actor/grad_norm"]) == (row["step"] != 2) for row in rows)
    dumps = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert dumps == ["step-2-skip-1-rank-0.jsonl", "step-2-skip-1-rank-1.jsonl"]
    kept = json.loads((tmp_path / "run" / "nonfinite" / dumps[1]).read_text().splitlines()[0])
    assert len(kept["old_log_probs"]) == len(kept["ids"]) > 0


@pytest.mark.parametrize("layout", ["dp2", pytest.param("tp2", marks=pytest.mark.slow), "pp2"])
def test_one_too_many_in_a_row_ends_the_run_on_every_rank(pool, tmp_path, layout):
    world, layout_words = LAYOUTS[layout]
    overrides = words(tmp_path, "train.max_nonfinite=1", *layout_words)
    reported = pool.run(ran, world, overrides, "advantage", math.nan, (2, 3), world - 1)
    assert all("step 3" in text and "train.max_nonfinite=1" in text for text in reported)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2]


def test_skips_that_do_not_follow_each_other_end_nothing(pool, tmp_path):
    reported = pool.run(ran, 1, words(tmp_path, "train.max_nonfinite=1"), "advantage", math.nan, (1, 3), 0)
    assert reported == [""]
    assert [row["actor/skipped_updates"] for row in read_metrics(tmp_path / "run")] == [1, 0, 1, 0]


def test_a_policy_whose_own_numbers_are_not_finite_ends_the_run_on_every_rank(pool, tmp_path):
    reported = pool.run(ran_with_broken_statistics, 2, words(tmp_path), 1)
    assert len(set(reported)) == 1 and "step 2: the policy's log-prob" in reported[0] and "1 tokens" in reported[0]
