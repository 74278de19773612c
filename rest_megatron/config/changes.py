"""Which keys shape a training run: it resumes only where they are what they were."""

from collections.abc import Mapping
from typing import Any

from rest_megatron.config.describe import to_dict
from rest_megatron.config.redact import redact
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config

# Where and how fast a run trains, not what it learns: layout, engine, kernels, logs, and what is only measured.
FREE_SECTIONS = {"parallel", "megatron", "deepspeed", "vllm", "kernels", "profile", "alarms", "log", "checkpoint"}
FREE_KEYS = {
    "run.dir",
    "run.device",
    "run.hang_timeout",
    "model.attention",
    "data.train",  # a file may move; what it holds is compared by its own hash
    "data.eval",
    "sft.data",
    "rollout.engine",
    "rollout.max_batch_size",
    "rollout.tools_timeout",
    "rollout.vllm_python",
    "rollout.vllm_url",
    "rollout.vllm_devices",
    "rollout.sync_dir",
    "rollout.start_timeout",
    "rollout.generate_timeout",
    "rollout.sync_timeout",
    "rollout.probe_prompts",
    "rollout.probe_tolerance",
    "rollout.dump",
    "reward.judge_url",
    "reward.judge_timeout",
    "reward.judge_concurrency",
    "train.max_tokens_per_micro_batch",
    "train.eval_interval",
    "train.export_interval",
    "train.gradient_variance_interval",
    "train.max_nonfinite",
}
# Sections that a command does not read.
UNREAD = {"train": {"sft"}, "sft": {"rollout", "method", "weights", "reward", "algorithm", "train"}}


def shaping_keys(config: Config, command: str) -> dict[str, Any]:
    """Dotted key -> plain value, without secrets, of everything that shapes the run of `command` (train or sft)."""
    left_out = FREE_SECTIONS | UNREAD[command]
    # The weights are the checkpoint's, but a KL term is towards those that the run began with.
    free = FREE_KEYS if config.algorithm.kl_coef > 0 else FREE_KEYS | {"model.path"}
    return {
        f"{section}.{name}": redact(value, f"{section}.{name}")
        for section, values in to_dict(config).items()
        if section not in left_out
        for name, value in values.items()
        if f"{section}.{name}" not in free
    }


def check_unchanged(config: Config, command: str, saved: Mapping[str, Any], where: str) -> None:
    """The configuration trains on as `saved`, an earlier `shaping_keys` kept in `where`, unless changes are allowed.

    A key that only one of two versions of the program has is no change. Raises ConfigError for the first that differs.
    """
    if config.checkpoint.allow_changes:
        return
    ours = shaping_keys(config, command)
    changed = [key for key, value in ours.items() if key in saved and saved[key] != value]
    if changed:
        others = f", as do {', '.join(changed[1:])}" if len(changed) > 1 else ""
        rule = f"differs from {saved[changed[0]]!r} of the checkpoint {where}{others}"
        fix = "Restore what was set, allow it with checkpoint.allow_changes=true, or start anew in another run.dir"
        refuse(config, changed[0], rule, fix)
