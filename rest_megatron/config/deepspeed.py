"""DeepSpeed's configuration: the user's own, and the few keys that the training step decides.

The step runs in boundary mode: Megatron's schedule accumulates every micro-batch, then DeepSpeed reduces and steps
once. That holds only for ZeRO stage 1 without overlapped communication, and DeepSpeed does not notice when it is
broken, so what breaks it is refused here by name.
"""

import copy
from typing import Any, NoReturn

from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError

AUTO = "auto"
BUCKET = 50_000_000
REASON = {
    "train_batch_size": "micro-batch x accumulation x data-parallel ranks",
    "train_micro_batch_size_per_gpu": "packed sequences per micro-batch",
    "gradient_accumulation_steps": "Megatron's schedule accumulates, DeepSpeed must not",
    "gradient_clipping": "optim.clip_grad",
    "bf16": "model.dtype",
    "data_types": "gradients accumulate in float32",
    "communication_data_type": "gradients are reduced in float32",
    "zero_allow_untested_optimizer": "the optimizer is built from optim.*",
    "zero_force_ds_cpu_optimizer": "the optimizer is built from optim.*",
}
STAGES = {
    0: "stage 0 does not reduce gradients in boundary mode",
    2: "stage 2 cuts gradients while Megatron's schedule still accumulates them: they would be wrong",
    3: "stage 3 gathers weights across ranks that run different pipeline stages: it hangs",
}


def engine_config(config: Config, *, data_parallel_size: int, micro_batch_size: int = 1) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`: the user's `deepspeed:` section with our keys filled in.

    micro_batch_size: sequences per micro-batch as DeepSpeed counts them; a packed micro-batch is one.
    Keys with the value "auto" are filled, or left to DeepSpeed's default when they are not ours. An `optimizer` or
    `scheduler` section that agrees with `optim.*` is dropped. Raises ConfigError, showing both values, when the
    user's section contradicts ours, and for settings that boundary mode would silently train wrong with.
    """
    user = copy.deepcopy(config.deepspeed)
    _refuse_unsupported(config, user)
    _check_optimizer(config, user.pop("optimizer", None))
    _check_scheduler(config, user.pop("scheduler", None))
    user.pop("fp16", None)
    owned = _owned(config, data_parallel_size, micro_batch_size)
    if _device(user.get("zero_optimization", {}), "offload_optimizer") == "cpu":
        # The optimizer is PyTorch's AdamW on the host, not DeepSpeed's own.
        owned["zero_force_ds_cpu_optimizer"] = False
    _check_agreement(config, user, owned)
    if config.model.dtype != "bfloat16":
        # Everything is float32 already.
        for name in ("bf16", "data_types", "communication_data_type"):
            owned.pop(name)
    zero = {"stage": 1, "overlap_comm": False, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    filled = _merge({"zero_optimization": zero}, _without_auto(user))
    return _merge(filled, owned)


def _owned(config: Config, data_parallel_size: int, micro_batch_size: int) -> dict[str, Any]:
    bf16 = config.model.dtype == "bfloat16"
    return {
        "train_batch_size": micro_batch_size * data_parallel_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_grad,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True, "immediate_grad_update": True} if bf16 else {"enabled": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def _refuse_unsupported(config: Config, user: dict) -> None:
    """What boundary mode would train wrong with. Raises ConfigError."""
    for name in ("zero_optimization", "optimizer", "scheduler", "fp16", "bf16", "data_types"):
        if not isinstance(user.get(name, {}), dict):
            _fail(config, name, user[name], "must be a mapping", "Write its keys below it")
    _refuse_zero(config, user.get("zero_optimization", {}))
    if user.get("fp16", {}).get("enabled", AUTO) not in (False, AUTO):
        rule = "is refused: loss scaling is not supported"
        _fail(config, "fp16.enabled", True, rule, "Remove fp16 and set model.dtype to bfloat16 or float32")
    if user.get("gradient_allreduce_op", AUTO) not in ("mean", AUTO):
        rule = "is refused: the loss is scaled for a mean over data-parallel ranks"
        _fail(config, "gradient_allreduce_op", user["gradient_allreduce_op"], rule, "Remove it")
    for name in ("bf16_master_weights_and_grads", "bf16_optimizer_states"):
        if user.get("bf16", {}).get(name):
            _fail(config, f"bf16.{name}", True, "is refused: masters and gradients stay float32", "Remove it")


def _refuse_zero(config: Config, zero: dict) -> None:
    stage = zero.get("stage", AUTO)
    if stage not in (1, AUTO) or isinstance(stage, bool):
        reason = STAGES.get(stage, "there is no such stage") if isinstance(stage, int) else "there is no such stage"
        _fail(config, "zero_optimization.stage", stage, f"is refused: {reason}", "Set it to 1")
    if zero.get("overlap_comm", AUTO) not in (False, AUTO):
        rule = "is refused: gradients would not be reduced over data-parallel ranks in boundary mode"
        _fail(config, "zero_optimization.overlap_comm", True, rule, "Set it to false")
    if _device(zero, "offload_param") != "none":
        rule = "is refused: parameters are offloaded by ZeRO-3 only"
        _fail(config, "zero_optimization.offload_param", zero["offload_param"], rule, "Remove it")
    device = _device(zero, "offload_optimizer")
    if device not in ("none", "cpu"):
        rule = "is refused: only cpu is tested"
        _fail(config, "zero_optimization.offload_optimizer.device", device, rule, "Set it to cpu or none")


def _device(zero: dict, name: str) -> str:
    section = zero.get(name)
    device = section.get("device", "none") if isinstance(section, dict) else section
    return "none" if device in (None, AUTO) else str(device)


def _check_optimizer(config: Config, section: dict | None) -> None:
    """The section says nothing that `optim.*` does not. Raises ConfigError."""
    if section is None:
        return
    kind = section.get("type", AUTO)
    if str(kind).lower() not in ("adam", "adamw", AUTO):
        _fail(config, "optimizer.type", kind, "is refused: the optimizer is AdamW, built from optim.*", "Remove it")
    optim = config.optim
    ours = {
        "lr": (optim.lr, "optim.lr"),
        "betas": (list(optim.betas), "optim.betas"),
        "eps": (optim.eps, "optim.eps"),
        "weight_decay": (optim.weight_decay, "optim.weight_decay"),
        "adam_w_mode": (True, "the optimizer is AdamW"),
    }
    _check_params(config, "optimizer", section, ours)


def _check_scheduler(config: Config, section: dict | None) -> None:
    if section is None:
        return
    optim = config.optim
    kinds = {"constant": "WarmupLR", "linear": "WarmupDecayLR", "cosine": "WarmupCosineLR"}
    kind = section.get("type", AUTO)
    if kind not in (kinds[optim.schedule], AUTO):
        rule = f"contradicts optim.schedule={optim.schedule}, which is {kinds[optim.schedule]}"
        _fail(config, "scheduler.type", kind, rule, "Set optim.schedule and remove the scheduler section")
    ours = {
        "warmup_max_lr": (optim.lr, "optim.lr"),
        "warmup_min_lr": (0.0, "warm-up starts near 0"),
        "warmup_num_steps": (optim.warmup_steps, "optim.warmup_steps"),
        "warmup_type": ("linear", "warm-up is linear"),
        "cos_min_ratio": (optim.min_lr_ratio, "optim.min_lr_ratio"),
    }
    _check_params(config, "scheduler", section, ours)


def _check_params(config: Config, name: str, section: dict, ours: dict[str, tuple[Any, str]]) -> None:
    params = section.get("params") or {}
    if not isinstance(params, dict):
        _fail(config, f"{name}.params", params, "must be a mapping", "Write its keys below it")
    for key, theirs in params.items():
        if theirs == AUTO:
            continue
        if key not in ours:
            rule = f"has no counterpart; known here: {', '.join(ours)}"
            _fail(config, f"{name}.params.{key}", theirs, rule, 'Remove it, or set it to "auto"')
        value, reason = ours[key]
        if theirs != value:
            rule = f"contradicts {value!r} ({reason})"
            _fail(config, f"{name}.params.{key}", theirs, rule, 'Keep one of them, or set it to "auto"')


def _check_agreement(config: Config, user: dict, owned: dict, prefix: str = "") -> None:
    """What the user wrote for keys that are ours is "auto" or the same. Raises ConfigError showing both values."""
    for name, ours in owned.items():
        theirs = user.get(name, AUTO)
        path = f"{prefix}{name}"
        if isinstance(ours, dict) and isinstance(theirs, dict):
            _check_agreement(config, theirs, ours, f"{path}.")
        elif theirs != AUTO and (theirs != ours or isinstance(theirs, bool) != isinstance(ours, bool)):
            reason = REASON[path.partition(".")[0]]
            rule = f"contradicts {ours!r}, which this trainer sets ({reason})"
            _fail(config, path, theirs, rule, 'Remove it, or set it to "auto"')


def _without_auto(user: dict) -> dict:
    """The user's section without "auto" at its top level and in what we fill: DeepSpeed's default stands."""
    kept = {name: value for name, value in user.items() if value != AUTO}
    for section in {"zero_optimization", "bf16", "data_types"} & kept.keys():
        kept[section] = {name: value for name, value in kept[section].items() if value != AUTO}
    return kept


def _merge(base: dict, top: dict) -> dict:
    merged = dict(base)
    for name, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        merged[name] = _merge(base[name], value) if both else value
    return merged


def _fail(config: Config, path: str, value: Any, rule: str, fix: str) -> NoReturn:
    raise ConfigError(f"deepspeed.{path}={value!r} {rule}   ({config.where(f'deepspeed.{path}')})\n  {fix}")
