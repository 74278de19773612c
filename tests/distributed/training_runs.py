"""Whole runs in the pool's workers: the overrides they share, and how two runs' metrics are compared."""

import pytest

from tests.distributed.training_cases import ScriptedEngine, ran
from tests.system.runs import make_run

SETTINGS = [
    "reward.overlong_buffer=8",
    "rollout.max_new_tokens=64",
    "train.max_tokens_per_micro_batch=128",
    "rollout.group_size=4",
    "train.gradient_variance_interval=2",
    "log.quiet=true",
    # The script's log-probs are made up.
    "algorithm.importance_cap=null",
    "algorithm.importance_mask=null",
]
CUT = ["parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"]


def run(pool, directory, world_size, command="train", files=(), overrides=(), engine=ScriptedEngine):
    directory.mkdir()
    words = [*make_run(directory), *SETTINGS, *overrides]
    pool.run(ran, world_size, command, [str(file) for file in files], words, engine)
    return directory / "run"


def same(rows, expected):
    assert len(rows) == len(expected) > 0
    for row, want in zip(rows, expected, strict=True):
        differences = {name for name in want if "gain_difference" in name}
        plain = {name: value for name, value in want.items() if name not in differences}
        assert {k: v for k, v in row.items() if k not in differences} == pytest.approx(
            plain, rel=2e-3, abs=2e-5, nan_ok=True
        )
        # Of nearly equal gains: what rounding leaves is a share of the gains themselves.
        rounding = 1e-5 * abs(want.get("gradient_variance/uniform/gain", 0.0))
        assert {k: v for k, v in row.items() if k in differences} == pytest.approx(
            {name: want[name] for name in differences}, rel=2e-3, abs=rounding, nan_ok=True
        )
