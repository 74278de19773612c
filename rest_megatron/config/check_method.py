"""Rules between the keys of the method: weights, reward, algorithm."""

from rest_megatron.config.method import WeightsConfig
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config

TOKEN_RULES = ("top_entropy", "entropy", "rsi_s", "tao_rl")
SWITCHES = ("use_format", "use_tool_name", "use_parameters", "use_cot")


def check_method(config: Config) -> None:
    """Raises ConfigError for the first rule that fails."""
    _check_weights(config)
    _check_reward(config)
    _check_judge(config)
    _check_ratio(config)
    _check_old_log_probs(config)


def _check_weights(config: Config) -> None:
    weights = config.weights
    for low, high in (("clamp_min", "clamp_max"), ("w_min", "w_max")):
        if getattr(weights, low) > getattr(weights, high):
            refuse(config, f"weights.{low}", f"is above weights.{high}={getattr(weights, high)}", "Swap them")
    if not any(getattr(weights, name) for name in SWITCHES):
        refuse(config, "weights.use_cot", "and every other region is off, so nothing would be trained", "Turn one on")
    if weights.freeze_after > 0 and weights.momentum != WeightsConfig.momentum:
        rule = f"has no effect with weights.freeze_after={weights.freeze_after}, after which means stand still"
        refuse(config, "weights.momentum", rule, "Leave it out, or set weights.freeze_after=0")
    if weights.curriculum == "feedback" and config.reward.function is not None:
        rule = "follows the accuracies of our rewards, which reward.function does not report"
        refuse(config, "weights.curriculum", rule, "Set weights.curriculum=linear or none")
    if weights.rule == "measured":
        _check_measured(config)
    if weights.rule == "reference" or weights.rule in TOKEN_RULES:
        _check_rule_without_regions(config)


def _check_measured(config: Config) -> None:
    weights = config.weights
    if weights.scope == "response":
        refuse(config, "weights.scope", "has no measurement of a single answer", "Set weights.scope=batch")
    if weights.measured_metric == "adam" and weights.freeze_after < 2:
        rule = f"needs an update before its first measurement, but weights.freeze_after={weights.freeze_after}"
        refuse(config, "weights.measured_metric", rule, "Set weights.freeze_after=2 or more, or measured_metric=plain")
    if config.algorithm.ratio == "sequence":
        rule = "cannot part an answer's one ratio, algorithm.ratio=sequence, into regions"
        refuse(config, "weights.rule", rule, "Choose another rule, or set algorithm.ratio=token")


def _check_rule_without_regions(config: Config) -> None:
    weights = config.weights
    if weights.curriculum != "none":
        own = "it has a schedule of its own" if weights.rule == "reference" else "it knows no regions to move weight in"
        preset = "weights.preset=reference" if weights.rule == "reference" else "method.preset=grpo"
        rule = f"needs weights.curriculum=none: {own}"
        refuse(config, "weights.rule", rule, f"Set weights.curriculum=none, or {preset}")
    off = [name for name in SWITCHES if not getattr(weights, name)]
    if off:
        rule = f"has no regions to switch off, but weights.{off[0]}=false"
        refuse(config, "weights.rule", rule, "Choose another rule for this ablation")
    if weights.rule == "reference" and config.data.answer_format != "toolrl":
        rule = "knows the answers of data.answer_format=toolrl only"
        refuse(config, "weights.rule", rule, "Choose another rule")
    if weights.rule == "rsi_s" and weights.rsi_low >= weights.rsi_high:
        rule = f"is not below weights.rsi_high={weights.rsi_high}, so no token would be trained on"
        refuse(config, "weights.rsi_low", rule, "Lower it")


def _check_reward(config: Config) -> None:
    reward = config.reward
    if reward.reference_variant != "none" and reward.preset != "reference":
        refuse(config, "reward.reference_variant", "needs reward.preset=reference", "Set it, or leave the variant out")
    if reward.function is None and reward.preset == "reference" and config.data.answer_format != "toolrl":
        rule = "reads the answers of data.answer_format=toolrl only"
        refuse(config, "reward.preset", rule, "Set reward.preset=paper")
    if reward.preset == "poster" and reward.ramp == "none":
        rule = "leaves nothing but format at the end of its ramp, which reward.ramp=none holds for the whole run"
        refuse(config, "reward.preset", rule, "Set reward.ramp=linear, or reward.preset=paper")
    if reward.overlong_buffer > config.rollout.max_new_tokens:
        rule = f"is longer than the longest answer, rollout.max_new_tokens={config.rollout.max_new_tokens}"
        refuse(config, "reward.overlong_buffer", rule, "Make it a part of that length, such as a quarter")


def _check_judge(config: Config) -> None:
    reward = config.reward
    if reward.judge_url is None:
        if reward.judge_weight > 0:
            refuse(config, "reward.judge_weight", "needs a judge, but reward.judge_url is null", "Set reward.judge_url")
        return
    if not _is_endpoint(reward.judge_url):
        refuse(config, "reward.judge_url", "is not an http:// or https:// address", "Such as http://localhost:8000/v1")
    if not reward.judge_model:
        refuse(config, "reward.judge_url", "needs reward.judge_model", "Name the model to ask")
    if reward.judge_weight == 0:
        refuse(config, "reward.judge_url", "has no effect with reward.judge_weight=0", "Set reward.judge_weight")


def _is_endpoint(address: str) -> bool:
    """Whether httpx can ask there."""
    import httpx  # takes a moment to load, and only a run with a judge needs it

    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _check_ratio(config: Config) -> None:
    algorithm = config.algorithm
    if algorithm.ratio != "sequence":
        return
    for name, off in (("kl_coef", 0.0), ("entropy_coef", 0.0), ("clip_ratio_dual", None)):
        if getattr(algorithm, name) != off:
            rule = "has no place in the loss on whole answers, algorithm.ratio=sequence"
            refuse(config, f"algorithm.{name}", rule, "Leave it out, or set algorithm.ratio=token")


def _check_old_log_probs(config: Config) -> None:
    if config.algorithm.old_log_probs == "recompute":
        return
    name, fix = "algorithm.old_log_probs", "Set it to recompute"
    train, weights = config.train, config.weights
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    updates = train.epochs * -(-answers // (train.mini_batch_size or answers))
    if updates > 1:
        rule = (
            f"needs one update in a step, but train.epochs={train.epochs} and train.mini_batch_size="
            f"{train.mini_batch_size} make {updates} of its {answers} answers"
        )
        refuse(config, name, rule, f"{fix}, or train.epochs=1 and train.mini_batch_size=null")
    if weights.rule in TOKEN_RULES:
        refuse(config, name, f"needs weights that do not read this step's entropies, as rule {weights.rule} does", fix)
    if weights.rule != "reference" and (weights.scope == "response" or weights.freeze_after == 0):
        rule = (
            f"needs base weights that stand still, but weights.scope={weights.scope} and weights.freeze_after="
            f"{weights.freeze_after}"
        )
        refuse(config, name, rule, f"{fix}, or weights.scope=batch and weights.freeze_after=3")
