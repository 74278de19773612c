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
    first_found, second_found = (
        recognise(path, check_whole, lambda text: stream.write(f"{text}\n"))
        for path in (options.input, options.against)
    )
    for name, found in (("input", first_found), ("against", second_found)):
        stream.write(f"{name:<8}{found.directory}: {found.kind}\n")
    stream.flush()
    first, second = open_pair(first_found, second_found, options.model, options.trust_pickle)
    with metered(sys.stderr, total_bytes(first) + total_bytes(second)) as seen:
        compared = compare(first, second, seen)
    stream.write("".join(f"{line}\n" for line in compared.lines()))
