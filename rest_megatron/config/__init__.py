"""The configuration: its schema, how it is read, checked, described and saved."""

from rest_megatron.config.describe import describe, dump, to_dict
from rest_megatron.config.load import load
from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config

__all__ = ["Config", "describe", "dump", "load", "redact", "to_dict"]
