"""Rules between the keys of dialogues: turns, tools and what can score them."""

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config


def check_dialogue(config: Config) -> None:
    """Raises ConfigError for the first rule that fails."""
    rollout = config.rollout
    if rollout.max_turns == 1:
        if rollout.tools is not None:
            refuse(config, "rollout.tools", "is never asked with rollout.max_turns=1", "Raise rollout.max_turns")
        return
    if rollout.tools is None:
        rule = "lets tools answer between turns, but rollout.tools is null"
        refuse(config, "rollout.max_turns", rule, "Name your function in rollout.tools, or set rollout.max_turns=1")
    if config.reward.function is None:
        rule = f"makes dialogues, and reward.preset={config.reward.preset} scores a single answer"
        refuse(config, "rollout.max_turns", rule, "Name your own reward in reward.function; it gets the whole dialogue")
