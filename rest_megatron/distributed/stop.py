"""How ranks agree to stop: over groups of gloo, on the CPU, since this must not wait for an accelerator.

gloo connects to the address that a node's name resolves to. Where nodes reach each other by another interface,
GLOO_SOCKET_IFNAME names it, on every node.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import ConfigError

CONNECT_TIMEOUT = timedelta(minutes=3)  # through a wrong interface nobody answers
REASON_KEY = "rest_megatron/stop"
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.2  # seconds between two looks at the job's store


@dataclass(frozen=True)
class StopGroups:
    """gloo groups of all ranks, and of those of this copy of the model (TP x PP); None for one rank alone."""

    everyone: dist.ProcessGroup | None = None
    block: dist.ProcessGroup | None = None


def connect_stop_groups(block: Sequence[int], timeout: timedelta) -> StopGroups:
    """The groups; block: the ranks of this copy of the model, timeout: of a call. Collective over all ranks.

    Raises ConfigError where gloo cannot connect the ranks.
    """
    if dist.get_world_size() == 1:
        return StopGroups()
    blocks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(blocks, tuple(block))
    try:
        everyone = dist.new_group(timeout=CONNECT_TIMEOUT, backend="gloo")
        own = None if len(block) == 1 else everyone
        if 1 < len(block) < len(blocks):
            distinct = [list(ranks) for ranks in dict.fromkeys(blocks)]
            own, _ = dist.new_subgroups_by_enumeration(distinct, timeout=CONNECT_TIMEOUT, backend="gloo")
    except RuntimeError as error:
        raise ConfigError(
            f"gloo cannot connect the ranks by the CPU: {str(error).splitlines()[0]}. Set GLOO_SOCKET_IFNAME to the "
            "interface by which the nodes reach each other, as `ip addr` names it"
        ) from error
    for group in {everyone, own} - {None}:
        dist.distributed_c10d._set_pg_timeout(timeout, group)
    return StopGroups(everyone, own)


def agree(reason: str | None, group: dist.ProcessGroup) -> str | None:
    """The reason of the first rank of `group` that has one, on all of its ranks. Collective."""
    size = dist.get_world_size(group)
    place = highest(0 if reason is None else size - dist.get_rank(group), group)
    if place == 0:
        return None
    box = [reason]
    dist.broadcast_object_list(box, group=group, group_src=size - place)
    return box[0]


def highest(value: int, group: dist.ProcessGroup) -> int:
    """The highest of the group's values. Collective."""
    found = torch.tensor(value, dtype=torch.int64)
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return int(found)


def exchange(store: dist.Store, reason: str | None) -> str | None:
    """Leave in the job's store, for all ranks, why this one is to stop; or read another one's reason there."""
    if reason is not None:
        store.set(REASON_KEY, reason)
    elif store.check([REASON_KEY]):
        return store.get(REASON_KEY).decode()
    return reason


def wait_for(store: dist.Store, key: str, watch: Watch, timeout: timedelta) -> None:
    """Return when another rank has set `key`; beat meanwhile, and pass on why this rank is to stop.

    Raises torch.distributed.DistStoreError when time is up.
    """
    deadline, pause = time.monotonic() + timeout.total_seconds(), FIRST_PAUSE
    # Not store.wait in slices: each that ends without the key writes two warnings to stderr.
    while not store.check([key]):
        watch.beat()
        watch.exchange_reasons()
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"{key} was not set within {timeout}")
        time.sleep(pause)
        pause = min(1.2 * pause, LONGEST_PAUSE)
