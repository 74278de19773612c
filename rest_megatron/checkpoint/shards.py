"""The masters and moments of all ranks as Hugging Face tensors in safetensors, by PyTorch's distributed checkpoint.

A key is "<kind>/<Hugging Face name>", a tensor float32 and whole, cut into the pieces that ranks had. A rank of any
other layout reads the slices it needs.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers import PreTrainedConfig

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.optimizer_state import KINDS, has_fragment, link_states, set_state, whole_state
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError
from rest_megatron.model.mapping import Mapped, Piece, expected_tensors, kv_groups, mapped_parameters, merge, split
from rest_megatron.utils.files import unwritable
from rest_megatron.utils.grouping import groups_within

GROUP_BYTES = 2**30
"""What a rank reads, or writes into one file, at once; or one parameter that is larger."""


def expected_keys(hf: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Key and shape of everything that is written."""
    return {f"{kind}/{name}": shape for kind in KINDS for name, shape in expected_tensors(hf).items()}


def state_bytes(hf: PreTrainedConfig) -> int:
    """The size of everything that is written."""
    return 4 * sum(torch.Size(shape).numel() for shape in expected_keys(hf).values())


@torch.no_grad()
def copy_state(actor: Actor, parallel: Parallel) -> dict[str, DTensor]:
    """This rank's share of masters and moments in CPU memory, by key. Collective.

    Data-parallel ranks take turns at parameters; the accelerator holds one float32 copy of one parameter at a time.
    """
    link_states(actor.zero.optimizer)
    mesh, groups = _mesh(parallel), kv_groups(actor.policy.hf, parallel)
    share: dict[str, DTensor] = {}
    kept = [mapped for mapped in mapped_parameters(actor.policy) if not mapped.is_copy]
    for number, mapped in enumerate(kept):
        for kind in KINDS:
            whole = whole_state(mapped.parameter, kind, number % parallel.dp_size, parallel.dp_group)
            if whole is not None:
                parts = split(whole, mapped.pieces, groups, parallel.tp_size)
                for piece, part in zip(mapped.pieces, parts, strict=True):
                    share[f"{kind}/{piece.name}"] = _distributed(part, piece, mesh)
        parallel.watch.beat()
    return share


def write_share(
    share: dict[str, DTensor], directory: Path, hf: PreTrainedConfig, parallel: Parallel, group: dist.ProcessGroup
) -> list[Path]:
    """Write every rank's share, synced to the disk; the files of this rank. Collective over `group`.

    Raises CheckpointError on all ranks when one cannot write.
    """
    writer = HuggingFaceStorageWriter(str(directory), file_numbers(hf, parallel), save_distributed=True)
    try:
        dcp.save(share, storage_writer=writer, process_group=group)
    except CheckpointException as error:
        rank = min(error.failures)
        raise unwritable(directory, f"rank {rank}: {error.failures[rank][0]!r}") from error
    return sorted(directory.glob(f"shard-{parallel.rank + 1:05d}-*.safetensors"))


def file_numbers(hf: PreTrainedConfig, parallel: Parallel) -> dict[str, int]:
    """Key -> number, from 1, of the file it goes into; every rank has its own file of each number it has tensors of."""
    limit = GROUP_BYTES * parallel.tp_size * parallel.dp_size
    files = groups_within(limit, expected_tensors(hf).items(), lambda tensor: _state_bytes(torch.Size(tensor[1])))
    return {f"{kind}/{name}": number for number, file in enumerate(files, 1) for name, _ in file for kind in KINDS}


def _state_bytes(shape: torch.Size) -> int:
    """The size of a parameter's master and moments."""
    return 4 * len(KINDS) * shape.numel()


class _Reader(HuggingFaceStorageReader):
    """Reads the headers of all files once, not once for each group of tensors."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.read_once: Metadata | None = None

    def read_metadata(self) -> Metadata:
        if self.read_once is None:
            self.read_once = super().read_metadata()
        return self.read_once


@torch.no_grad()
def read_state(actor: Actor, parallel: Parallel, directory: Path) -> None:
    """Overwrite this rank's masters and moments with those in `directory`; no communication.

    Raises CheckpointError for a file that cannot be read; names and shapes must have been checked.
    """
    link_states(actor.zero.optimizer)
    mesh, groups = _mesh(parallel), kv_groups(actor.policy.hf, parallel)
    reader = _Reader(str(directory))
    for batch in _batches(actor):
        parts = {
            f"{kind}/{piece.name}": _distributed(torch.empty(piece.local_shape(parallel.tp_size)), piece, mesh)
            for mapped in batch
            for kind in KINDS
            for piece in mapped.pieces
        }
        try:
            dcp.load(parts, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(f"{directory} cannot be read: {error.failures[0][0]!r}") from error
        for mapped in batch:
            for kind in KINDS:
                pieces = [parts[f"{kind}/{piece.name}"].to_local() for piece in mapped.pieces]
                set_state(mapped.parameter, kind, merge(pieces, groups))
        parallel.watch.beat()


def _batches(actor: Actor) -> Iterator[list[Mapped]]:
    """The parameters of which this rank has a part, those of at most GROUP_BYTES together."""
    present = (mapped for mapped in mapped_parameters(actor.policy) if has_fragment(mapped.parameter))
    return groups_within(GROUP_BYTES, present, lambda mapped: _state_bytes(mapped.parameter.shape))


def _mesh(parallel: Parallel) -> DeviceMesh:
    return DeviceMesh.from_group(parallel.tp_group, "cpu")


def _distributed(part: Tensor, piece: Piece, mesh: DeviceMesh) -> DTensor:
    """This rank's part, on the CPU, as a part of the whole tensor."""
    placement = Replicate() if piece.dim is None else Shard(piece.dim)
    return DTensor.from_local(part, mesh, [placement], run_check=False)
