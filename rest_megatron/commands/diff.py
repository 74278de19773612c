"""`diff`: how the tensors of two checkpoints differ, whatever kinds they are."""

import sys
from typing import TextIO

from rest_megatron.commands.catalogue import Diff
from rest_megatron.convert.compare import compare
from rest_megatron.convert.meter import metered
from rest_megatron.convert.opening import open_pair
from rest_megatron.convert.recognise import check_whole, recognise
from rest_megatron.convert.weights import total_bytes


def main(options: Diff, stream: TextIO) -> None:
    """Compare options.input with options.against, and write the result to `stream`; the progress goes to stderr.

    Two of our checkpoints are compared with their masters and moments, all others by the Hugging Face tensors of the
    working weights. Raises CheckpointError for what cannot be read.
    """
    found = [
        recognise(path, check_whole, lambda text: stream.write(f"{text}\n"))
        for path in (options.input, options.against)
    ]
    for name, one in zip(("input", "against"), found, strict=True):
        stream.write(f"{name:<8}{one.directory}: {one.kind}\n")
    stream.flush()
    first, second = open_pair(*found, options.model, options.trust_pickle)
    with metered(sys.stderr, total_bytes(first) + total_bytes(second)) as seen:
        found = compare(first, second, seen)
    stream.write("".join(f"{line}\n" for line in found.lines()))
