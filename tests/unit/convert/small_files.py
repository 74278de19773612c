"""A conversion into small files."""

from pathlib import Path

from rest_megatron.convert.convert import Conversion, Target, convert
from rest_megatron.convert.opening import open_model
from rest_megatron.convert.recognise import check_whole, recognise

SMALL = 100_000  # bytes of a file: the tiny model has several


def make(source: Path, output: Path, kind: str, **fields) -> Conversion:
    """Convert with small files."""
    model = open_model(recognise(source, check_whole, print), None, trust_pickle=True)
    return convert(model, Target(output, kind, file_bytes=SMALL, **fields))
