"""The command line: what the words of a user mean, and the run of the command they name."""

from rest_megatron.cli.program import main
from rest_megatron.cli.words import parse

__all__ = ["main", "parse"]
