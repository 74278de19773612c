"""When a run is taken for finished."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest

from rest_megatron.checkpoint import resume
from rest_megatron.checkpoint.resume import RunIdentity, find_checkpoint, finished_steps, write_finished
from rest_megatron.config import load
from rest_megatron.config.changes import shaping_keys
from rest_megatron.config.schema import Config
from rest_megatron.errors import Finished

STEPS = 3


def found(tmp_path, parallel, *words: str, step: int = STEPS):
    """What a start resumes from where a checkpoint of `step` is the newest."""
    config = load((), [f"run.dir={tmp_path}", f"train.steps={STEPS}", *words])
    loop = {"command": "train", "data": "rows", "step": step}
    loop["config"] = json.loads(json.dumps(shaping_keys(config, "train")))
    newest = tmp_path / "step-00000003", SimpleNamespace(state={"train": loop})
    with mock.patch.object(resume, "newest", return_value=newest):
        return find_checkpoint(config, RunIdentity("train", "rows"), parallel, print)


def finished_run(tmp_path) -> Config:
    """The configuration of a run that has written all that it writes at its end."""
    config = load((), [f"run.dir={tmp_path}", f"train.steps={STEPS}"])
    (tmp_path / "hf").mkdir()
    write_finished(config, "train")
    return config


def test_a_run_whose_export_was_deleted_is_not_finished(tmp_path):
    config = finished_run(tmp_path)
    assert (finished_steps(config, "train"), finished_steps(config, "sft")) == (STEPS, None)
    (tmp_path / "hf").rmdir()
    assert finished_steps(config, "train") is None


def test_every_rank_takes_a_run_for_finished_when_rank_0_does(tmp_path):
    """On a network's disk another node may not see yet that the file is there."""
    by_rank_0 = finished_steps(finished_run(tmp_path), "train")
    with mock.patch.object(resume, "finished_steps", return_value=None), pytest.raises(Finished, match="step 3 of 3"):
        found(tmp_path, SimpleNamespace(on_main=lambda function: by_rank_0))


@pytest.mark.parametrize("step, finished", [(2, 3), (3, 2), (3, None)])
def test_a_run_is_finished_only_where_its_newest_checkpoint_is_that_of_the_last_step(tmp_path, step, finished):
    assert found(tmp_path, SimpleNamespace(on_main=lambda function: finished), step=step).is_own
