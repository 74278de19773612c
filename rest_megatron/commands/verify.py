"""`verify`: whether a checkpoint is whole: every file, every tensor, every number."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rest_megatron.checkpoint.manifest import step_directories
from rest_megatron.commands.catalogue import Verify
from rest_megatron.convert.compare import nonfinite_tensors
from rest_megatron.convert.meter import metered
from rest_megatron.convert.opening import open_model
from rest_megatron.convert.recognise import CHECKPOINTS, STEP, check_whole, recognise
from rest_megatron.convert.weights import total_bytes
from rest_megatron.errors import CheckpointError


def main(options: Verify, stream: TextIO) -> None:
    """Check options.input, and write a line for each checkpoint to `stream`; the progress goes to stderr.

    Ours, one or all of a run, by the hashes of their manifests; others by names, shapes, and whether every number is
    finite. Raises CheckpointError when one is not whole.
    """
    steps = step_directories(options.input) or step_directories(options.input / CHECKPOINTS)
    if steps:
        _check_steps(steps, stream)
        return
    found = recognise(options.input, check_whole, lambda text: None)
    if found.kind == STEP:
        stream.write(f"{found.directory}: whole\n")
        return
    model = open_model(found, options.model, options.trust_pickle)
    with metered(sys.stderr, total_bytes(model.weights)) as seen:
        bad = nonfinite_tensors(model.weights, seen)
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointError(f"{found.directory}: NaN or infinity in {', '.join(bad[:5])}{more}")
    stream.write(f"{found.directory}: whole, a {found.kind} of {len(model.weights.tensors)} tensors, all finite\n")


def _check_steps(steps: Sequence[Path], stream: TextIO) -> None:
    broken = 0
    for step in steps:
        try:
            check_whole(step)
            stream.write(f"{step}: whole\n")
        except CheckpointError as error:
            broken += 1
            stream.write(f"{step}: not whole: {error.args[0]}\n")
        stream.flush()
    if broken:
        raise CheckpointError(f"{broken} of {len(steps)} checkpoints in {steps[0].parent} are not whole")
