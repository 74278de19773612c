"""How a failed job says so: once, when every rank fails alike, and never not at all."""

import sys
from datetime import timedelta
from typing import TextIO

from rest_megatron.errors import RestError
from rest_megatron.launch import Launch

PATIENCE = timedelta(seconds=3)


def report_shared(error: RestError, launch: Launch | None, stream: TextIO) -> None:
    """Report an error found in what all ranks read alike: arguments, configuration, model files.

    Rank 0 writes it whole. The first rank of every other node writes one line, since files may differ between
    nodes; all others are quiet.
    """
    if launch is None or launch.rank == 0:
        stream.write(f"{error}\n")
    elif launch.local_rank == 0:
        stream.write(_one_line(error, launch))


def report_running(error: RestError, launch: Launch, stream: TextIO) -> None:
    """Report an error raised while the job ran, by one rank or by all.

    Rank 0 writes it whole; another rank writes one line, unless rank 0 fails with the same text.
    """
    repeated = _repeats_rank_zero(str(error), launch)
    if launch.rank == 0:
        stream.write(f"{error}\n")
    elif not repeated:
        stream.write(_one_line(error, launch))


def _one_line(error: RestError, launch: Launch) -> str:
    return f"rank {launch.rank}: {str(error).splitlines()[0]}\n"


def _repeats_rank_zero(text: str, launch: Launch) -> bool:
    """Ask through the job's key-value store; without one (no process group is left) the answer is no."""
    # Not imported here: without it, there is no process group to ask.
    distributed = sys.modules.get("torch.distributed")
    if launch.world_size == 1 or distributed is None or not distributed.is_initialized():
        return False
    store = distributed.PrefixStore("rest_megatron/error", distributed.distributed_c10d._get_default_store())
    return agree(store, text, launch.rank, launch.world_size)


def agree(store, text: str, rank: int, world_size: int, patience: timedelta = PATIENCE) -> bool:
    """Whether rank 0 fails with `text` too. Waits at most `patience` for the others.

    Rank 0 stays until every other rank has read its text, for it may be the one that holds the store.
    """
    others = [f"read/{other}" for other in range(1, world_size)]
    try:
        if rank == 0:
            store.set("text", text)
            store.wait(others, patience)
            return True
        store.wait(["text"], patience)
        same = store.get("text") == text.encode("utf-8")
        store.set(f"read/{rank}", "")
        return same
    except RuntimeError:
        # Time is up, or rank 0 and its store are gone: nobody else reports this failure.
        return False
