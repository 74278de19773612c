"""The keys that take a training run apart."""

import pytest

from rest_megatron.config import load
from rest_megatron.config.check import check_settings
from rest_megatron.errors import ConfigError

ALONE, SAVED, FROM = "train.debug=rollout_only", "train.debug=train_only", "train.replay=runs/a/rollouts"


@pytest.mark.parametrize("overrides", [[], [ALONE], [SAVED, FROM], [SAVED, FROM, "rollout.dump=false"]])
def test_keys_that_go_together(overrides):
    check_settings(load([], overrides))


@pytest.mark.parametrize(
    "overrides, key, rule, fix",
    [
        ([ALONE, "rollout.dump=false"], ALONE, "but rollout.dump=false", "Set rollout.dump=true"),
        ([SAVED], SAVED, "but train.replay names none", "Set train.replay to"),
        ([SAVED, "train.replay=''"], SAVED, "but train.replay names none", "Set train.replay to"),
        ([FROM], FROM, "train.debug=train_only alone, which is off", "Set train.debug=train_only"),
        ([ALONE, FROM], FROM, "train.debug=train_only alone, which is rollout_only", "or remove it"),
    ],
)
def test_keys_that_contradict_each_other(overrides, key, rule, fix):
    with pytest.raises(ConfigError) as caught:
        check_settings(load([], overrides))
    said, advice = str(caught.value).splitlines()
    assert said.startswith(f"config error: {key} ") and rule in said and fix in advice
    assert f"(override: {key})" in said
