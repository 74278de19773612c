"""`convert`: a checkpoint of ours, of Megatron-core or of Hugging Face made into one of another kind."""

import sys
from typing import TextIO

from rest_megatron.commands.catalogue import Convert
from rest_megatron.convert.convert import Target, convert
from rest_megatron.convert.megatron_format import MegatronWeights
from rest_megatron.convert.meter import metered, size_text
from rest_megatron.convert.opening import open_model
from rest_megatron.convert.recognise import HUGGING_FACE, MEGATRON, check_whole, recognise
from rest_megatron.convert.weights import in_dtype, total_bytes
from rest_megatron.errors import ConfigError
from rest_megatron.model.model import DTYPES


def main(options: Convert, stream: TextIO) -> None:
    """Convert options.input to options.output, and write to `stream` what was what; the progress goes to stderr.

    Raises CheckpointError for what cannot be read, written or trusted, ConfigError for a combination that means
    nothing.
    """
    found = recognise(options.input, check_whole, lambda text: stream.write(f"{text}\n"))
    other = MEGATRON if found.kind == HUGGING_FACE else HUGGING_FACE
    kind = {"hf": HUGGING_FACE, "megatron": MEGATRON, None: other}[options.format]
    if options.vocab_multiple > 1 and kind != MEGATRON:
        raise ConfigError(
            "convert: --vocab-multiple pads the vocabulary of --format megatron; Hugging Face has no padding"
        )
    target = Target(options.output, kind, DTYPES[options.dtype] if options.dtype else None, options.vocab_multiple)
    stream.write(f"input   {found.directory}: {found.kind}\n")
    stream.flush()
    model = open_model(found, options.model, options.trust_pickle)
    if isinstance(model.weights, MegatronWeights):
        rows = model.weights.vocabulary
        stream.write(f"vocabulary: {rows} rows, {rows - model.hf.vocab_size} of padding cut off\n")
        stream.flush()
    with metered(sys.stderr, 3 * total_bytes(in_dtype(model.weights, target.dtype))) as seen:
        done = convert(model, target, seen)
    reused = f"; {done.reused} files of it from an earlier attempt" if done.reused else ""
    stream.write(f"output  {options.output}: {kind}, {done.tensors} tensors, {size_text(done.size)}{reused}\n")
    stream.write("read again and compared with the input: identical\n")
