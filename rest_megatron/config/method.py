"""The sections of the method: presets, token weights, reward, advantages and loss.

Equation numbers refer to arXiv 2509.21826.
"""

from dataclasses import dataclass
from typing import Any, Literal

from rest_megatron.config.field import key

MethodPreset = Literal["paper", "reference", "grpo"]
WeightsPreset = Literal["paper", "reference", "uniform"]
WeightsRule = Literal[
    "score_bound", "inverse_entropy", "collision", "lm_head", "constant", "measured", "reference",
    "top_entropy", "entropy", "rsi_s", "tao_rl",
]  # fmt: skip
ReferenceVariant = Literal["none", "correct_max_1", "max_1_step_30_max_3", "coarse", "refined", "intermediate"]
LossAggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"]

# Presets lie between the defaults and explicit keys: what each one sets, section -> key -> value. The method's comes
# first; it may choose the preset of `weights`, which fills its own section. The defaults are the paper's.
METHOD_PRESETS: dict[MethodPreset, dict[str, dict[str, Any]]] = {
    "paper": {},
    "reference": {
        "weights": {"preset": "reference"},
        "reward": {"preset": "reference"},
        "algorithm": {"loss_aggregation": "token-mean", "clip_ratio_dual": 3.0},
    },
    "grpo": {"weights": {"preset": "uniform"}},
}
WEIGHTS_PRESETS: dict[WeightsPreset, dict[str, dict[str, Any]]] = {
    "paper": {},
    "reference": {"weights": {"rule": "reference", "curriculum": "none"}},
    # Every region weighs 1 before and after normalisation, at every step.
    "uniform": {"weights": {"rule": "constant", "curriculum": "none"}},
}


@dataclass(frozen=True)
class MethodConfig:
    """Which method; its preset chooses those of `weights` and `reward` and fills `algorithm`. Explicit keys win."""

    preset: MethodPreset = key(
        "paper",
        "paper: ResT with measured entropies. reference: ResT as its published code computes it. grpo: every token "
        "weighs the same.",
    )


@dataclass(frozen=True)
class WeightsConfig:
    """Token weights: region weights (Theorem 2, Eq. 9), their curriculum (Eq. 16-17), mean 1 in every answer."""

    preset: WeightsPreset = key(
        "paper",
        "paper: this section's defaults. reference: the published code's. uniform: every token weighs 1.",
    )
    rule: WeightsRule = key(
        "score_bound",
        "Region weight from the region's means over tokens of entropy H and collision c = sum_v p_v^2: score_bound "
        "1/(1-exp(-H)), inverse_entropy 1/H, collision 1/(1-c), lm_head 1/((1-c)|h|^2) with the last hidden state h, "
        "constant 1 (Eq. 9). measured 1/(1-exp(-H)), moved towards signal over noise of each region's gradient. "
        "reference: the published code's spans, constants and schedule; it reads no other key. Token by token, read "
        "with the next four keys only: top_entropy 1 for the keep_share of highest H; entropy "
        "1+b(H/mean(H)-1) in each answer; rsi_s 1 where -log(p)/H is within its bounds; tao_rl "
        "1+b(H-mean(H))/std(H) after a tool's result, else 1.",
    )
    keep_share: float = key(0.2, "rule=top_entropy: share of the batch's tokens that is trained on.", gt=0, le=1)
    entropy_slope: float = key(0.1, "b of rule=entropy and of rule=tao_rl, whose authors take 0.01.", ge=0, le=1)
    rsi_low: float = key(0.5, "rule=rsi_s: least surprisal over entropy of a token that is trained on.", ge=0)
    rsi_high: float = key(2.0, "rule=rsi_s: the most; the bounds of the paper itself are not known to us.", gt=0)
    scope: Literal["batch", "response"] = key(
        "batch",
        "Where a region's mean is taken: batch: all answers that are trained on, over steps as freeze_after says; "
        "response: each answer of this step by itself.",
    )
    freeze_after: int = key(
        3,
        "With scope=batch: the means are those of the first N steps in which a region is seen, then they stand still, "
        "so that the curriculum alone moves the weights. 0: they follow every step, as momentum says.",
        ge=0,
    )
    measure_every: int = key(
        0,
        "rule=measured: steps from one measurement to the next; the first is made in step freeze_after, at least 1. 0: "
        "that one alone. Each costs up to four updates.",
        ge=0,
    )
    measured_metric: Literal["adam", "plain"] = key(
        "adam",
        "rule=measured: how gradients are multiplied: adam: over the root of Adam's second moment, coordinate by "
        "coordinate. plain: as they are.",
    )
    momentum: float = key(
        0.9,
        "With freeze_after=0, the share that a running mean keeps at each step; 0 uses this step alone. Where momentum "
        "is set and freeze_after is not, freeze_after is 0.",
        ge=0,
        lt=1,
    )
    clamp_min: float = key(0.3, "Smallest region weight after the rule is normalised.", gt=0)
    clamp_max: float = key(2.0, "Largest region weight after the rule is normalised.", gt=0)
    curriculum: Literal["linear", "feedback", "none"] = key(
        "linear",
        "linear: over progress nu = step / train.steps (Eq. 16-17). feedback: weight moves from a region to the next, "
        "in the order format, tool name, parameters, cot, when the region's accuracy saturates. none: constant.",
    )
    alpha_format: float = key(0.3, "Fall of the format weight over the run (a_f).", ge=0)
    alpha_parameters: float = key(0.3, "Rise of the parameter weight over the run (a_p).", ge=0)
    alpha_cot: float = key(0.3, "Rise of the chain-of-thought weight over the run (a_t).", ge=0)
    w_min: float = key(0.3, "Floor of a falling weight (w_min).", gt=0)
    w_max: float = key(2.0, "Ceiling of a rising weight (w_max).", gt=0)
    feedback_shift: float = key(0.3, "Weight that a saturated region has handed to the next one.", ge=0)
    feedback_rate: float = key(0.1, "Largest change of a region's saturation, 0 to 1, in one step.", gt=0, le=1)
    feedback_target: float = key(0.95, "Accuracy at which a region counts as saturated.", gt=0, le=1)
    feedback_patience: int = key(20, "Steps without a better accuracy after which it does, too.", ge=1)
    use_format: bool = key(True, "false: format tokens weigh 0 (ablation).")
    use_tool_name: bool = key(True, "false: tool-name tokens weigh 0 (ablation).")
    use_parameters: bool = key(True, "false: parameter tokens weigh 0 (ablation).")
    use_cot: bool = key(True, "false: chain-of-thought tokens weigh 0 (the paper's ablation without CoT gradient).")


@dataclass(frozen=True)
class RewardConfig:
    """Scores of answers: the rule, a judge beside it, a punishment of length."""

    preset: Literal["paper", "reference", "poster"] = key(
        "paper",
        "paper: strict format, exact JSON types, best assignment of calls. reference: the published code, its defects "
        "included. poster: R = b_a S_acc (1 - nu) + b_f S_format nu.",
    )
    ramp: Literal["linear", "none"] = key(
        "linear",
        "Scales of format and correctness: linear: over progress nu. none: those of the end of the run (the paper's "
        "ablation without dynamic reward).",
    )
    reference_variant: ReferenceVariant = key(
        "none",
        "With preset=reference, another of the published code's reward designs.",
    )
    beta_accuracy: float = key(3.0, "b_a of preset=poster.", ge=0)
    beta_format: float = key(1.0, "b_f of preset=poster.", ge=0)
    function: str | None = key(
        None,
        "Your own reward in place of preset and ramp: package.module:function or file.py:function (docs/method.md).",
    )
    judge_url: str | None = key(
        None,
        "An OpenAI-compatible endpoint, such as http://host:8000/v1, that grades answers; its key: OPENAI_API_KEY.",
    )
    judge_model: str = key("", "The model to ask there.")
    judge_weight: float = key(0.0, "Total = reward + judge_weight x grade, a grade in [0, 1]; no grade adds 0.", ge=0)
    judge_timeout: float = key(30.0, "Seconds to wait for one grade.", gt=0)
    judge_concurrency: int = key(16, "Grades asked for at once.", ge=1)
    overlong_buffer: int = key(
        0, "Soft punishment (DAPO): over the last N tokens below rollout.max_new_tokens the reward falls; 0: off.", ge=0
    )
    overlong_penalty: float = key(1.0, "Punishment of an answer as long as rollout.max_new_tokens.", ge=0)


@dataclass(frozen=True)
class AlgorithmConfig:
    """Advantages and the clipped loss: baseline, ratio, clips, importance correction, regularisers."""

    advantage: Literal["group_mean", "leave_one_out"] = key(
        "group_mean",
        "Baseline of an answer's score: its group's mean (GRPO), or the mean of the others, leave_one_out (RLOO).",
    )
    normalize_by_std: bool = key(True, "With advantage=group_mean, divide by the group's standard deviation (GRPO).")
    zero_variance: Literal["keep", "mask", "refill"] = key(
        "keep",
        "Groups whose answers all score the same: keep: advantage 0. mask: no gradient at all, not counted in the "
        "loss's mean. refill: replaced by new prompts (DAPO's dynamic sampling), then as mask.",
    )
    max_refills: int = key(3, "Rollouts that zero_variance=refill may add to one step.", ge=1)
    old_log_probs: Literal["recompute", "update"] = key(
        "recompute",
        "Where the log-probs before a step's updates come from: recompute: a pass of their own. update: the forward "
        "pass of the step's only update, where its token weights are known without them.",
    )
    ratio: Literal["token", "sequence"] = key(
        "token",
        "Probability ratio that is clipped: token by token, or of the whole answer, length-normalised (GSPO).",
    )
    clip_ratio_low: float = key(0.2, "Lower clip of the probability ratio (eps_lo).", gt=0, lt=1)
    clip_ratio_high: float = key(0.2, "Upper clip of the probability ratio (eps_hi).", gt=0)
    clip_ratio_dual: float | None = key(None, "Dual clip for negative advantages (c > 1); null: none.", gt=1)
    importance_cap: float | None = key(
        2.0,
        "Truncated importance sampling: each token's loss is multiplied by min(p_actor / p_engine, cap), with the "
        "log-probs before the update; null: not.",
        ge=1,
    )
    importance_mask: float | None = key(
        2.0,
        "An answer whose geometric mean of p_actor / p_engine lies outside [1/x, x] gives no gradient; null: none.",
        gt=1,
    )
    loss_aggregation: LossAggregation = key(
        "seq-mean-token-mean",
        "seq-mean-token-mean: 1/G sum_i 1/T_i sum_t. token-mean: one weighted mean over all tokens. "
        "seq-mean-token-sum-norm: 1/G sum_i 1/rollout.max_new_tokens sum_t (Dr.GRPO).",
    )
    kl_coef: float = key(0.0, "Coefficient of the k3 estimate of KL(policy || initial policy); 0: none.", ge=0)
    entropy_coef: float = key(0.0, "Coefficient of the entropy bonus.", ge=0)

    @property
    def regularised(self) -> bool:
        """Whether the policy loss has a term that an answer of advantage 0 has, too."""
        return self.kl_coef > 0 or self.entropy_coef > 0
