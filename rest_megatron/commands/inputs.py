"""Prompts and demonstrations as a run needs them: every row checked against the limits of the configuration.

Prompts also by the reward, against the answers' grammar and, for dialogues, against the chat template.
"""

from transformers import PreTrainedTokenizerBase

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.data.demonstrations import Demonstration, load_demonstrations
from rest_megatron.data.prompts import load_prompts
from rest_megatron.data.turns import read_turns
from rest_megatron.environment.tools import load_tools
from rest_megatron.grammar import GRAMMARS, opens_think
from rest_megatron.reward.presets import build_reward
from rest_megatron.types import Prompt


def read_prompts(config: Config, tokenizer: PreTrainedTokenizerBase, path: str) -> list[Prompt]:
    """All prompts of a file.

    Raises DataError for a bad row, ConfigError for a chat template that data.answer_format cannot follow, and with
    rollout.max_turns > 1 for one that cannot hold a dialogue, or for tools that cannot be loaded.
    """
    prompts = load_prompts(
        path,
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        overlong=config.data.overlong,
        validate=build_reward(config).read,
    )
    # One template renders all rows.
    opened = opens_think(str(tokenizer.decode(list(prompts[0].token_ids))).encode("utf-8"))
    if opened and GRAMMARS[config.data.answer_format].think is None:
        rule = "has no thoughts, but the chat template opens one before the answer"
        refuse(config, "data.answer_format", rule, "Choose toolrl or hermes, or another data.chat_template")
    if config.rollout.max_turns > 1:
        read_turns(config, tokenizer)
        load_tools(config)
    return prompts


def read_demonstrations(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Demonstration]:
    """All demonstrations of sft.data. Raises DataError for a bad row."""
    return load_demonstrations(
        config.sft.data,
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_response_tokens=config.rollout.max_new_tokens,
        overlong=config.data.overlong,
    )
