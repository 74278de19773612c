"""How a failed job reports its error: always, and only once where every rank fails alike."""

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from rest_megatron.config.redact import redact
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import RestError

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(seconds=3)


def report(error: RestError, launch: Launch | None, stream: TextIO) -> None:
    """Write `error` to `stream`: whole on rank 0, as one line on a rank that fails with something else.

    launch: this process's place; None: alone. Before there is a process group, an error lies in what all ranks of a
    node read alike: arguments, configuration, model, data. Then the first rank of every other node reports it too,
    since files may differ between nodes, and all others are quiet. Later a rank reports its error unless rank 0 fails
    with the same text.
    """
    # Nothing that an error quotes may show a secret, whoever raised it.
    text = redact(str(error))
    if launch is None:
        stream.write(f"{text}\n")
        return
    store = _store(launch)
    if store is not None:
        repeated = agree(store, text, launch.rank, launch.world_size)
    else:
        repeated = launch.local_rank != 0
    if launch.rank == 0:
        stream.write(f"{text}\n")
    elif not repeated:
        stream.write(f"rank {launch.rank}: {text.splitlines()[0]}\n")


def _store(launch: Launch) -> "Store | None":
    """The job's key-value store, None without a process group."""
    # Not imported: where nobody else did, there is no process group either.
    distributed = sys.modules.get("torch.distributed")
    if launch.world_size == 1 or distributed is None or not distributed.is_initialized():
        return None
    return distributed.PrefixStore("rest_megatron/error", distributed.distributed_c10d._get_default_store())


def agree(store: "Store", text: str, rank: int, world_size: int, patience: timedelta = PATIENCE) -> bool:
    """Whether rank 0 fails with `text` too, through a torch.distributed store. Waits at most `patience`.

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
