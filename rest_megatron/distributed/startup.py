"""The start and the end of a rank: its device, torch.distributed, DeepSpeed's communication and Megatron's groups."""

import os
from functools import partial

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import COLLECTIVE_TIMEOUT, Parallel
from rest_megatron.distributed.stop import connect_stop_groups, exchange
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import ConfigError


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

    The world size must be TP x PP x DP; `config.check` has refused any other before this is called. watch: this
    rank's; None: one that does nothing. Raises ConfigError where gloo cannot connect the ranks.
    """
    watch = watch or Watch()
    if device.type == "cpu":
        from rest_megatron.distributed.cpu import use_cpu

        use_cpu()
    _join(launch, device)
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


def _join(launch: Launch, device: torch.device) -> None:
    """torch.distributed's default group, and DeepSpeed's communication over it."""
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
