"""The `print-config` command: the resolved configuration."""

from typing import TextIO

from rest_megatron.config import dump
from rest_megatron.config.schema import Config


def main(config: Config, stream: TextIO) -> None:
    """Write the configuration as YAML, secrets hidden; `load` reads it back to the same values."""
    stream.write(dump(config))
