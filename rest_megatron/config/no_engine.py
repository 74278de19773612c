"""The configuration of a command that samples nothing."""

from dataclasses import replace

from rest_megatron.config.check_rollout import NEUTRAL, SERVER_KEYS
from rest_megatron.config.schema import Config


def without_engine(config: Config) -> Config:
    """`config` without a server and without tools."""
    unused = {"engine": "sampler", "max_turns": 1, "tools": None, **dict.fromkeys(SERVER_KEYS), **NEUTRAL}
    return replace(config, rollout=replace(config.rollout, **unused), vllm={})
