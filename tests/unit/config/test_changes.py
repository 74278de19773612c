"""What may differ between a run and the checkpoint it goes on from."""

import json

import pytest

from rest_megatron.config import load
from rest_megatron.config.changes import check_unchanged, shaping_keys
from rest_megatron.config.keys import keys
from rest_megatron.errors import ConfigError


def saved(*overrides: str, command: str = "train") -> dict:
    """As a manifest gives it back."""
    return json.loads(json.dumps(shaping_keys(load([], overrides), command)))


def test_every_key_that_is_not_named_free_shapes_the_run():
    free = {name for name in keys() if name not in shaping_keys(load(), "train")}
    assert "optim.lr" not in free and "rollout.temperature" not in free and "train.steps" not in free
    assert {"run.dir", "parallel.tensor_model_parallel_size", "kernels.level", "checkpoint.keep"} <= free


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=elsewhere",
        "parallel.tensor_model_parallel_size=2",
        "deepspeed={zero_optimization: {offload_optimizer: {device: cpu}}}",
        "train.max_tokens_per_micro_batch=4096",
        "log.wandb=offline",
        "data.train=moved.jsonl",
    ],
)
def test_layout_and_places_may_change(override):
    check_unchanged(load([], [override]), "train", saved(), "step-1")


def test_a_changed_key_is_refused_with_both_values_and_what_else_changed():
    config = load([], ["optim.lr=1e-3", "train.steps=7"])
    with pytest.raises(ConfigError) as error:
        check_unchanged(config, "train", saved(), "runs/a/checkpoints/step-00000003")
    text = str(error.value)
    assert "optim.lr=0.001 differs from 1e-06" in text and "step-00000003" in text and "train.steps" in text
    assert "override: optim.lr=1e-3" in text and "checkpoint.allow_changes=true" in text


def test_the_model_may_move_unless_a_kl_term_is_towards_it():
    check_unchanged(load([], ["model.path=moved"]), "train", saved(), "step-1")
    with pytest.raises(ConfigError, match="model.path=moved differs from ''"):
        check_unchanged(
            load([], ["model.path=moved", "algorithm.kl_coef=0.1"]), "train", saved("algorithm.kl_coef=0.1"), "step-1"
        )


def test_changes_can_be_allowed():
    check_unchanged(load([], ["optim.lr=1e-3", "checkpoint.allow_changes=true"]), "train", saved(), "step-1")


def test_a_key_that_the_version_which_saved_did_not_have_is_no_change():
    earlier = saved()
    del earlier["optim.eps"]
    check_unchanged(load([], ["optim.eps=1e-6"]), "train", earlier, "step-1")


@pytest.mark.parametrize(("command", "override"), [("train", "sft.steps=9"), ("sft", "rollout.group_size=4")])
def test_sections_that_the_command_does_not_read_may_change(command, override):
    check_unchanged(load([], [override]), command, saved(command=command), "step-1")


def test_no_secret_is_among_the_keys():
    text = json.dumps(shaping_keys(load([], ["reward.judge_url=http://me:planted@host/v1"]), "train"))
    assert "planted" not in text
