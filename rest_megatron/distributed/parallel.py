"""A rank's place among the others, and the few collectives that the trainer needs."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rest_megatron.distributed.stop import StopGroups, agree, highest, wait_for
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import Preempted, RestError

T = TypeVar("T")
U = TypeVar("U")

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
    stop_groups: StopGroups = field(default_factory=StopGroups)
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
        """A safe point: raise Preempted on every rank of `group` when one of them is to stop. Collective.

        group: of gloo; None: all ranks. The reason is that of the lowest rank that has one.
        """
        self.watch.beat()
        reason = self.watch.exchange_reasons()
        group = group or self.stop_groups.everyone
        if group is not None:
            reason = agree(reason, group)
        if reason is not None:
            raise Preempted(reason)

    def block_must_stop(self) -> bool:
        """Whether a rank of this copy of the model (TP x PP) is to stop. Collective over those ranks.

        For work of which data-parallel ranks do different amounts: break off, and `poll` where all of them meet. A
        reason to stop remains, hence that poll raises; see `stop_together`.
        """
        self.watch.beat()
        must_stop, block = self.watch.exchange_reasons() is not None, self.stop_groups.block
        return must_stop if block is None else highest(must_stop, block) > 0

    def stop_together(self) -> NoReturn:
        """The `poll` of a rank that has broken off its work because of `block_must_stop`: it always raises."""
        self.poll()
        raise RuntimeError("this rank has broken off its work, but no rank is to stop")

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

    def on_main(self, function: Callable[[], T]) -> T:
        """`function()`'s picklable value, computed by rank 0 alone, on every rank; its RestError is raised on all.

        The others wait at the job's store, not in a collective: that would keep their accelerators busy, and end the
        job when rank 0 needs long.
        """
        if self.world_size == 1:
            return function()
        turn = f"rest_megatron/main/{next(self._turns)}"
        store = dist.distributed_c10d._get_default_store()
        outcome: T | RestError | None = None
        if self.rank == 0:
            try:
                outcome = function()
            except RestError as error:
                outcome = error
            store.set(turn, "")
        else:
            wait_for(store, turn, self.watch, MAIN_TIMEOUT)
        shared: T | RestError = self.broadcast_object(outcome)
        if isinstance(shared, RestError):
            raise shared
        return shared

    def only_main(self, function: Callable[[], T]) -> T | None:
        """`function()`'s value on rank 0 alone, such as an open file, and None elsewhere; see `on_main`."""
        made: list[T] = []
        self.on_main(lambda: made.append(function()))
        return made[0] if made else None

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


@dataclass(frozen=True)
class MainOnly(Generic[T]):
    """What rank 0 alone holds, such as a connection. The others have the same handle without a value."""

    parallel: Parallel
    value: T | None

    def call(self, function: Callable[[T], U]) -> U:
        """`Parallel.on_main` of `function`, which gets the value."""
        return self.parallel.on_main(lambda: function(self._held()))

    def _held(self) -> T:
        if self.value is None:
            raise RuntimeError("rank 0 does not hold what it is to be called with")
        return self.value
