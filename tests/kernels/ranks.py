"""Real tensor-parallel groups: a process for every rank, joined by gloo."""

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.threads import limit_threads


def run_ranks(function: Callable, world_size: int, directory: Path, *args: Any) -> list[dict]:
    """`function(rank, group, *args)` on every rank at once; the dicts of tensors they return, in rank order.

    `directory` is an empty folder for the ranks to meet in. A rank that raises or hangs fails the test.
    """
    # What all ranks need is imported once.
    multiprocessing.set_forkserver_preload(["torch", "rest_kernels.triton_backend"])
    arguments = (function, world_size, str(directory), args)
    mp.start_processes(_run_rank, arguments, nprocs=world_size, start_method="forkserver")
    return [torch.load(directory / f"{rank}.pt") for rank in range(world_size)]


def _run_rank(rank: int, function: Callable, world_size: int, directory: str, args: tuple) -> None:
    limit_threads()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    torch.save(function(rank, dist.group.WORLD, *args), f"{directory}/{rank}.pt")
    dist.destroy_process_group()
