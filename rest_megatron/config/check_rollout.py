"""Rules between the keys of rollouts: dialogues, what sampling may change, which server, with what settings."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config, RolloutConfig

# Keys that only a server reads.
SERVER_KEYS = ("vllm_python", "vllm_url", "vllm_devices", "sync_dir")
# Settings of vLLM's sampling, with the values that keep every token.
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}
CORRECTIONS = ("importance_cap", "importance_mask")
# Arguments of vLLM that something else decides.
OWNED_ARGUMENTS = {
    **dict.fromkeys(("model", "model_tag", "tokenizer"), "model.path"),
    "dtype": "model.dtype",
    "seed": "run.seed",
    **dict.fromkeys(("host", "port"), "rollout.vllm_url, or by the trainer's private socket"),
    "uds": "the trainer, which makes a private one",
    "api_key": "the environment variable VLLM_API_KEY",
    "hf_token": "the environment variable HF_TOKEN",
    **dict.fromkeys(
        (
            "headless",
            "runner",
            "api_server_count",
            "served_model_name",
            "logprobs_mode",
            "generation_config",
            "override_generation_config",
            "weight_transfer_config",
            "worker_extension_cls",
            "root_path",
            "ssl_keyfile",
            "ssl_certfile",
            "ssl_ca_certs",
            "ssl_cert_reqs",
        ),
        "the trainer, which relies on it",
    ),
    "config": "this section: a second file could change what the trainer relies on",
}


def check_rollout(config: Config) -> None:
    """Raises ConfigError for the first rule that fails. Reads no file."""
    _check_dialogue(config)
    _check_sampling(config)
    if config.rollout.engine != "vllm":
        _check_unused(config)
        return
    _check_server(config)
    _check_arguments(config)


def without_engine(config: Config) -> Config:
    """`config` for a command that samples nothing: without a server and without tools."""
    unused: dict[str, Any] = {
        "engine": "sampler",
        "max_turns": 1,
        "tools": None,
        **dict.fromkeys(SERVER_KEYS),
        **NEUTRAL,
    }
    return replace(config, rollout=replace(config.rollout, **unused), vllm={})


def check_server_files(config: Config) -> None:
    """rollout.vllm_python can be run, where this run will. Raises ConfigError."""
    python = config.rollout.vllm_python
    if python is None or config.train.debug == "train_only":
        return
    if not (Path(python).is_file() and os.access(python, os.X_OK)):
        rule = f"is not a program that can be run (looked in {Path.cwd()})"
        refuse(config, "rollout.vllm_python", rule, "Name the python of the environment that holds vLLM")


def _check_dialogue(config: Config) -> None:
    rollout = config.rollout
    if rollout.max_turns == 1:
        if rollout.tools is not None:
            refuse(config, "rollout.tools", "is never called with rollout.max_turns=1", "Raise rollout.max_turns")
        return
    if rollout.tools is None:
        rule = "lets tools answer between turns, but rollout.tools is null"
        refuse(config, "rollout.max_turns", rule, "Name your function in rollout.tools, or set rollout.max_turns=1")
    if config.reward.function is None:
        rule = f"makes dialogues, and reward.preset={config.reward.preset} scores a single answer"
        refuse(config, "rollout.max_turns", rule, "Name your own reward in reward.function; it gets the whole dialogue")


def _check_sampling(config: Config) -> None:
    rollout, algorithm = config.rollout, config.algorithm
    for name, off in NEUTRAL.items():
        if getattr(rollout, name) == off:
            continue
        if rollout.engine != "vllm":
            refuse(config, f"rollout.{name}", "is vLLM's; rollout.engine=sampler draws from all tokens", "Remove it")
        active = [key for key in CORRECTIONS if getattr(algorithm, key) is not None]
        if active:
            rule = (
                f"makes vLLM's log-probs those within the tokens it keeps, the actor's are over all; "
                f"algorithm.{active[0]}={getattr(algorithm, active[0])} divides one by the other"
            )
            fix = " and ".join(f"algorithm.{key}=null" for key in active)
            refuse(config, f"rollout.{name}", rule, f"Set rollout.{name}={off:g}, or {fix}")
        if config.alarms.max_mismatch > 0:
            rule = (
                "makes vLLM's log-probs those within the tokens it keeps, the actor's are over all; "
                f"alarms.max_mismatch={config.alarms.max_mismatch:g} would take the difference for stale weights"
            )
            refuse(config, f"rollout.{name}", rule, f"Set rollout.{name}={off:g}, or alarms.max_mismatch=0")


def _check_unused(config: Config) -> None:
    fix = "Set rollout.engine=vllm, or remove it"
    for name in SERVER_KEYS:
        if getattr(config.rollout, name) is not None:
            refuse(config, f"rollout.{name}", "has no effect with rollout.engine=sampler", fix)
    for name in config.vllm:
        refuse(config, f"vllm.{name}", "has no effect with rollout.engine=sampler", fix)


def _check_server(config: Config) -> None:
    rollout = config.rollout
    for name in ("sync_dir", "vllm_devices"):
        if getattr(rollout, name) == "":
            refuse(config, f"rollout.{name}", "is empty", "Name one, or set it to null")
    if rollout.vllm_url is None:
        if not rollout.vllm_python:
            rule = "needs a server, but rollout.vllm_python and rollout.vllm_url are null"
            fix = "Set rollout.vllm_python to the python of the environment that holds vLLM, or rollout.vllm_url"
            refuse(config, "rollout.engine", rule, fix)
        return
    if rollout.vllm_python is not None:
        rule = f"attaches to a server, but rollout.vllm_python={rollout.vllm_python} starts one"
        refuse(config, "rollout.vllm_url", rule, "Set one of them to null")
    if rollout.vllm_devices is not None:
        rule = "is for a server that the trainer starts, but rollout.vllm_url attaches to one"
        refuse(config, "rollout.vllm_devices", rule, "Remove it; give the server its devices where it is started")
    if not _is_address(rollout):
        fix = "Such as http://node7:8000"
        refuse(config, "rollout.vllm_url", "is not an http:// or https:// address of a host, without a path", fix)
    if "@" in urlsplit(rollout.vllm_url).netloc:
        rule = "holds a user or a password, and vLLM asks for a bearer token alone"
        refuse(config, "rollout.vllm_url", rule, "Put the token into the environment variable VLLM_API_KEY")


def _is_address(rollout: RolloutConfig) -> bool:
    try:
        parts = urlsplit(rollout.vllm_url)
        port_is_valid = parts.port != 0
    except ValueError:
        return False
    bare = parts.path in ("", "/") and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_valid and bare


def _check_arguments(config: Config) -> None:
    for name in config.vllm:
        plain = name.replace("-", "_")
        # vLLM takes the beginning of a name for the name.
        owned = [full for full in OWNED_ARGUMENTS if full.startswith(plain)]
        if owned:
            refuse(config, f"vllm.{name}", f"is decided by {OWNED_ARGUMENTS[owned[0]]}", "Remove it here")
        if plain != name or not name.isidentifier():
            refuse(
                config, f"vllm.{name}", "is not an argument's name", f"Write it with underscores, such as vllm.{plain}"
            )
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    room = config.vllm.get("max_model_len", longest)
    if isinstance(room, int) and room < longest:
        rule = (
            f"is less than one longest answer, data.max_prompt_tokens={config.data.max_prompt_tokens} + "
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} = {longest}"
        )
        refuse(config, "vllm.max_model_len", rule, "Remove it: that sum is the default")
