"""Whole Hugging Face tensors of each pipeline stage: gathered one at a time, planned into files, and written."""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.model.mapping import kv_groups, mapped_parameters, split
from rest_megatron.model.model import Policy
from rest_megatron.utils.files import unwritable
from rest_megatron.utils.grouping import groups_within


class Planned(NamedTuple):
    """Where a tensor goes: a file's name, and the tensor's bytes in it."""

    file: str
    size: int


@torch.no_grad()
def gather_tensors(
    policy: Policy, parallel: Parallel, value_of: Callable[[torch.nn.Parameter], Tensor]
) -> Iterator[tuple[str, Tensor | None]]:
    """Whole Hugging Face tensors of this pipeline stage, one at a time: (name, tensor on the CPU).

    `value_of` gives what to export of a parameter: its data, or its gradient. Collective over the tensor-parallel
    group; ranks other than its first get None. The copy of a tied embedding is left out.
    """
    groups = kv_groups(policy.hf, parallel)
    for mapped in mapped_parameters(policy):
        if mapped.is_copy:
            continue
        local = value_of(mapped.parameter).reshape(mapped.parameter.shape)
        for piece, shard in zip(mapped.pieces, split(local, mapped.pieces, groups, parallel.tp_size), strict=True):
            yield piece.name, _gather(shard, piece.dim, parallel)


def _gather(shard: Tensor, dim: int | None, parallel: Parallel) -> Tensor | None:
    if dim is None or parallel.tp_size == 1:
        return shard.cpu() if parallel.tp_rank == 0 else None
    shards = [torch.empty_like(shard) for _ in range(parallel.tp_size)]
    dist.all_gather(shards, shard, group=parallel.tp_group)
    return torch.cat(shards, dim=dim).cpu() if parallel.tp_rank == 0 else None


def file_plan(policy: Policy, parallel: Parallel, max_file_bytes: int) -> dict[str, Planned]:
    """Tensor name -> its place, the same on every rank. Collective over the pipeline's ranks.

    Every stage has files of its own, of at most `max_file_bytes` of tensors, or of one tensor that is larger.
    """
    local: list[tuple[str, int]] = []
    for mapped in mapped_parameters(policy):
        if not mapped.is_copy:
            width = mapped.parameter.element_size()
            local += [(piece.name, width * torch.Size(piece.shape).numel()) for piece in mapped.pieces]
    stages = [local]
    if parallel.pp_size > 1:
        stages = [[]] * parallel.pp_size
        dist.all_gather_object(stages, local, group=parallel.pp_group)
    files = [file for stage in stages for file in groups_within(max_file_bytes, stage, lambda tensor: tensor[1])]
    return {
        name: Planned(weight_file_name(number, len(files)), size)
        for number, file in enumerate(files, start=1)
        for name, size in file
    }


def weight_file_name(number: int, count: int) -> str:
    """The name of file `number`, from 1, of the `count` that hold a model's weights, as Hugging Face names them."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def write_stage(
    policy: Policy,
    parallel: Parallel,
    directory: Path,
    plan: dict[str, Planned],
    written: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write this stage's files, holding one file's tensors at a time (the plan follows the gather's order).

    Collective over the tensor-parallel group, whose first rank writes and calls `written` with each complete file.
    Raises CheckpointError there, but only after its part in the gathering: the others would wait for it.
    """
    problem: CheckpointError | None = None
    gathered = gather_tensors(policy, parallel, lambda parameter: parameter.data)
    for file, tensors in groupby(gathered, key=lambda named: plan[named[0]].file):
        held = {name: tensor for name, tensor in tensors if tensor is not None}
        if held and problem is None:
            try:
                written(_write_file(directory / file, held))
            except CheckpointError as error:
                problem = error
        held.clear()  # before the next file's are gathered
    if problem is not None:
        raise problem


def _write_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        # safetensors makes its files private; what may be listed in the directory may be read.
        path.chmod(path.parent.stat().st_mode & 0o666)
    except (SafetensorError, OSError) as error:
        raise unwritable(path, error) from error
    return path
