"""Rules between the keys of the method, and what its presets fill in."""

import pytest

from rest_megatron.config import load
from rest_megatron.config.check_method import check_method
from rest_megatron.errors import ConfigError
from rest_megatron.method.token_rules import TOKEN_RULES

JUDGE = ("reward.judge_url=http://host/v1", "reward.judge_model=m", "reward.judge_weight=0.5")


@pytest.mark.parametrize(
    "overrides, rule, fix",
    [
        (("weights.clamp_min=3",), "is above weights.clamp_max=2.0", "Swap"),
        (("weights.w_min=3",), "is above weights.w_max=2.0", "Swap"),
        (
            tuple(f"weights.use_{name}=false" for name in ("format", "tool_name", "parameters", "cot")),
            "nothing would be trained",
            "Turn one on",
        ),
        (("weights.momentum=0.5", "weights.freeze_after=3"), "has no effect", "weights.freeze_after=0"),
        (("weights.curriculum=feedback", "reward.function=a:b"), "reward.function does not report", "linear or none"),
        (("weights.rule=reference",), "needs weights.curriculum=none", "weights.preset=reference"),
        (("weights.preset=reference", "weights.use_cot=false"), "no regions to switch off", "another rule"),
        (("weights.preset=reference", "data.answer_format=hermes"), "data.answer_format=toolrl only", "another rule"),
        *(((f"weights.rule={rule}",), "needs weights.curriculum=none", "method.preset=grpo") for rule in TOKEN_RULES),
        *(
            (("method.preset=grpo", "weights.use_cot=false", f"weights.rule={rule}"), "no regions", "another rule")
            for rule in TOKEN_RULES
        ),
        (
            ("method.preset=grpo", "weights.rule=rsi_s", "weights.rsi_low=2"),
            "is not below weights.rsi_high=2.0",
            "Lower",
        ),
        (("reward.reference_variant=coarse",), "needs reward.preset=reference", "leave the variant out"),
        (("reward.preset=reference", "data.answer_format=llama3"), "toolrl only", "reward.preset=paper"),
        (("reward.preset=poster", "reward.ramp=none"), "nothing but format", "reward.ramp=linear"),
        (("reward.overlong_buffer=2000",), "rollout.max_new_tokens=1024", "a part of that length"),
        (("reward.judge_weight=1",), "needs a judge", "reward.judge_url"),
        *(
            ((f"reward.judge_url={url}", *JUDGE[1:]), "not an http:// or https://", "localhost")
            for url in ("host:80", "localhost", "ftp://host/v1", "http://", "http://host:x/v1")
        ),
        ((JUDGE[0], JUDGE[2]), "needs reward.judge_model", "Name the model"),
        (JUDGE[:2], "has no effect", "reward.judge_weight"),
        (("algorithm.ratio=sequence", "algorithm.kl_coef=0.1"), "algorithm.ratio=sequence", "algorithm.ratio=token"),
        (("algorithm.ratio=sequence", "algorithm.entropy_coef=0.1"), "algorithm.ratio=sequence", "Leave it out"),
        (("algorithm.ratio=sequence", "algorithm.clip_ratio_dual=3"), "algorithm.ratio=sequence", "Leave it out"),
        *(
            (("algorithm.old_log_probs=update", *others), rule, "recompute")
            for others, rule in (
                (("train.epochs=2",), "make 2 of its"),
                (
                    ("train.mini_batch_size=64", "rollout.prompts_per_step=16", "rollout.group_size=8"),
                    "make 2 of its 128",
                ),
                (("method.preset=grpo", "weights.rule=rsi_s"), "as rule rsi_s does"),
                (("weights.freeze_after=0",), "base weights that stand still"),
                (("weights.scope=response",), "base weights that stand still"),
            )
        ),
    ],
)
def test_a_contradiction_is_refused_with_the_rule_and_a_fix(overrides, rule, fix):
    with pytest.raises(ConfigError) as error:
        check_method(load((), overrides))
    assert rule in str(error.value) and fix in str(error.value).splitlines()[-1]
    assert "override: " in str(error.value) or "preset" in str(error.value)


def test_a_refused_address_does_not_show_its_password():
    with pytest.raises(ConfigError, match="reward.judge_url") as error:
        check_method(load((), ["reward.judge_url=ftp://me:sk-planted@host", *JUDGE[1:]]))
    assert "sk-planted" not in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        JUDGE,
        ("method.preset=reference",),
        ("algorithm.ratio=sequence",),
        *(("method.preset=grpo", f"weights.rule={rule}") for rule in TOKEN_RULES),
        ("reward.preset=reference", "reward.function=a:b", "data.answer_format=hermes"),
    ],
)
def test_what_holds_together_is_accepted(overrides):
    check_method(load((), overrides))


def test_the_method_preset_chooses_the_presets_of_weights_and_reward():
    config = load((), ["method.preset=reference"])
    assert (config.weights.rule, config.weights.curriculum, config.reward.preset) == ("reference", "none", "reference")
    assert (config.algorithm.loss_aggregation, config.algorithm.clip_ratio_dual) == ("token-mean", 3.0)
    assert config.where("weights.preset") == "preset method=reference"
    assert config.where("weights.rule") == "preset weights=reference"


def test_explicit_keys_win_over_presets_and_a_section_s_preset_over_the_method_s():
    config = load((), ["method.preset=reference", "weights.preset=paper", "reward.preset=poster"])
    assert (config.weights.rule, config.weights.curriculum, config.reward.preset) == ("score_bound", "linear", "poster")
    assert config.algorithm.clip_ratio_dual == 3.0
    config = load((), ["weights.preset=uniform", "weights.curriculum=linear"])
    assert (config.weights.rule, config.weights.curriculum) == ("constant", "linear")
