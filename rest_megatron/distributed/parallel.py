"""Process groups: one start for every launcher, Megatron's groups, and the few collectives the trainer needs."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.stop import StopGroups, agree, connect_stop_groups, exchange, highest, wait_for
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import ConfigError, Preempted, RestError

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
MAIN_TIMEOUT = timedelta(hours=24)  # for what rank 0 does alone; a user's own reward has no other limit


@dataclass(frozen=True)
class Parallel:
    """Where this rank stands. Sizes and ranks are those of Megatron's groups; `device` is this rank's own."""

    device: torch.device
    rank: int
    world_size: int
    tp_size: int
    tp_rank: int
    pp_size: int
    pp_rank: int
    dp_size: int
    dp_rank: int
    num_chunks: int
    watch: Watch = field(default_factory=Watch, compare=False, repr=False)
    stop_groups: StopGroups = StopGroups()
    _turns: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    @property
    def tp_group(self) -> dist.ProcessGroup:
        """Ranks that share each matrix."""
        return parallel_state.get_tensor_model_parallel_group()

    @property
    def pp_group(self) -> dist.ProcessGroup:
        """Ranks that share the layers."""
        return parallel_state.get_pipeline_model_parallel_group()

    @property
    def dp_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same shard and see different answers."""
        return parallel_state.get_data_parallel_group()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes logits and the loss."""
        return self.pp_rank == self.pp_size - 1

    def poll(self, group: dist.ProcessGroup | None = None) -> None:
        """A safe point: raise Preempted on every rank of `group` when one of them was asked to stop. Collective.

        group: of gloo; None: all ranks. The reason is that of the lowest rank that has one.
        """
        reason = self.watch.asked()
        group = group or self.stop_groups.everyone
        if group is not None:
            reason = agree(reason, group)
        if reason is not None:
            raise Preempted(reason)

    def block_asked(self) -> bool:
        """Whether a rank of this copy of the model (TP x PP) was asked to stop. Collective over those ranks.

        For work of which data-parallel ranks do different amounts: break off, and `poll` where all of them meet. A rank
        that was asked stays so, hence that poll raises.
        """
        asked, block = self.watch.asked() is not None, self.stop_groups.block
        return asked if block is None else highest(asked, block) > 0

    def broadcast_from_last_stage(self, tensor: Tensor) -> Tensor:
        """Overwrite `tensor` on every pipeline stage with the last stage's; same shape and dtype everywhere."""
        if self.pp_size > 1:
            dist.broadcast(tensor, parallel_state.get_pipeline_model_parallel_last_rank(), group=self.pp_group)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's picklable `value`, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def on_main(self, function: Callable[[], Any]) -> Any:
        """`function()`'s picklable value, computed by rank 0 alone, on every rank; its RestError is raised on all.

        The others wait at the job's store, not in a collective: that would keep their accelerators busy, and end the
        job when rank 0 needs long.
        """
        if self.world_size == 1:
            return function()
        turn = f"rest_megatron/main/{next(self._turns)}"
        store = dist.distributed_c10d._get_default_store()
        outcome = None
        if self.rank == 0:
            try:
                outcome = function()
            except RestError as error:
                outcome = error
            store.set(turn, "")
        else:
            wait_for(store, turn, self.watch, MAIN_TIMEOUT)
        outcome = self.broadcast_object(outcome)
        if isinstance(outcome, RestError):
            raise outcome
        return outcome

    def on_all(self, function: Callable[[], Any], group: dist.ProcessGroup | None = None) -> list[Any]:
        """The picklable value of every rank's `function()`, in rank order, on all ranks; a RestError is raised on all.

        For work that one rank alone may fail in: nobody waits for a rank that has given up. group: of all ranks, the
        only one it communicates over; None: the default one.
        """
        try:
            outcome = function()
        except RestError as error:
            outcome = error
        outcomes = [outcome]
        if self.world_size > 1:
            outcomes = [None] * self.world_size
            dist.all_gather_object(outcomes, outcome, group=group)
        for outcome in outcomes:
            if isinstance(outcome, RestError):
                raise outcome
        return outcomes

    def gather_to_main(self, value: Any) -> list[Any]:
        """On rank 0 the picklable `value` of each data-parallel rank with the same shard; [] on every other rank."""
        if self.dp_size == 1:
            return [value] if self.rank == 0 else []
        if self.tp_rank or self.pp_rank:
            return []
        values: list[Any] | None = [None] * self.dp_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.dp_group)
        return values or []

    def gather_over_data_parallel(self, value: Any) -> list[Any]:
        """The picklable `value` of each data-parallel rank, in rank order, on all of them."""
        if self.dp_size == 1:
            return [value]
        values: list[Any] = [None] * self.dp_size
        dist.all_gather_object(values, value, group=self.dp_group)
        return values


def choose_device(name: str, launch: Launch) -> torch.device:
    """The device of this rank for `run.device` auto, cpu or cuda.

    A Slurm task that sees a single device takes it: Slurm bound it there. Raises ConfigError, on all ranks of a node
    alike, when they outnumber its devices.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and count == 0):
        return torch.device("cpu")
    bound = launch.launcher == "slurm" and count == 1
    if launch.local_world_size > count and not bound:
        raise ConfigError(
            f"run.device={name}: {launch.local_world_size} ranks on this node, but {count} CUDA devices; "
            "each rank needs its own. Start fewer ranks, or set run.device=cpu"
        )
    device = torch.device("cuda", 0 if bound else launch.local_rank)
    torch.cuda.set_device(device)
    return device


def initialize(
    launch: Launch, parallel: ParallelConfig, device: torch.device, seed: int, watch: Watch | None = None
) -> Parallel:
    """Start torch.distributed, DeepSpeed's communication, Megatron's groups and those that agree to stop.

    The world size must be TP x PP x DP; `config.check` has refused any other before this is called. watch: what this
    rank is asked from outside; None: nothing. Raises ConfigError where gloo cannot connect the ranks.
    """
    watch = watch or Watch()
    if device.type == "cpu":
        _prepare_cpu()
    os.environ.update(
        MASTER_ADDR=launch.master_addr,
        MASTER_PORT=str(launch.master_port),
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.world_size),
        LOCAL_RANK=str(launch.local_rank),
    )
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    chunks = parallel.virtual_pipeline_model_parallel_size
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=chunks,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(seed)
    block = dist.get_process_group_ranks(parallel_state.get_model_parallel_group())
    stop_groups = connect_stop_groups(block, COLLECTIVE_TIMEOUT)
    if launch.world_size > 1:
        watch.connect(partial(exchange, dist.distributed_c10d._get_default_store()))
    return Parallel(
        device=device,
        rank=launch.rank,
        world_size=launch.world_size,
        tp_size=parallel.tensor_model_parallel_size,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        pp_size=parallel.pipeline_model_parallel_size,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        num_chunks=chunks or 1,
        watch=watch,
        stop_groups=stop_groups,
    )


def shutdown() -> None:
    """Leave every group; the process may start again with another layout."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _prepare_cpu() -> None:
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
    from deepspeed.ops import __compatible_ops__

    from rest_megatron.distributed.cpu import use_cpu

    set_accelerator(CPU_Accelerator())
    # DeepSpeed would compile a shared-memory communication op at start; gloo needs no compiler.
    __compatible_ops__["deepspeed_shm_comm"] = False
    use_cpu()
