"""Rules between the keys that take a training run apart: train.debug and train.replay."""

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config


def check_debug(config: Config) -> None:
    """Raises ConfigError for the first rule that fails."""
    train = config.train
    if train.debug == "rollout_only" and not config.rollout.dump:
        rule = "makes dumps and nothing else, but rollout.dump=false"
        refuse(config, "train.debug", rule, "Set rollout.dump=true")
    if train.debug == "train_only" and not train.replay:
        rule = "trains on the answers of another run, but train.replay names none"
        refuse(config, "train.debug", rule, "Set train.replay to that run's directory rollouts")
    if train.debug != "train_only" and train.replay is not None:
        rule = f"is read with train.debug=train_only alone, which is {train.debug}"
        refuse(config, "train.replay", rule, "Set train.debug=train_only, or remove it")
