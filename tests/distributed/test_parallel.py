"""What rank 0 does alone reaches every rank: its value, its error, and however late it is."""

import threading
import time

import pytest
import torch

from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import MainOnly
from rest_megatron.distributed.startup import initialize
from rest_megatron.errors import DataError, RestError


def outcomes(launch: Launch) -> tuple:
    """What each rank sees of a value, of an error and of a value again, and what ran here."""
    parallel = initialize(launch, ParallelConfig(), torch.device("cpu"), seed=0)
    ran = []

    def slow():
        ran.append("slow")
        time.sleep(0.5)
        return {"rank": launch.rank}

    def broken():
        ran.append("broken")
        raise DataError("oops")

    first = parallel.on_main(slow)
    return first, failed(lambda: parallel.on_main(broken)), parallel.on_main(lambda: "again"), ran


def kept(launch: Launch) -> tuple:
    """Whether this rank has what rank 0 made, which cannot be pickled; what a call of it gives; and errors."""
    parallel = initialize(launch, ParallelConfig(), torch.device("cpu"), seed=0)

    def broken():
        raise DataError("oops")

    lock = MainOnly(parallel, parallel.only_main(threading.Lock))
    acquired = [lock.call(lambda lock: lock.acquire(blocking=False)) for _ in range(2)]
    errors = [failed(lambda: parallel.only_main(broken)), failed(lambda: lock.call(lambda lock: broken()))]
    return lock.value is not None, acquired, errors


def failed(work) -> tuple | None:
    try:
        work()
    except RestError as error:
        return type(error), str(error)
    return None


OOPS = (DataError, "data error: oops")


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_gets_rank_zeros_value_or_error(pool, world_size):
    results = pool.run(outcomes, world_size)
    for rank, (first, error, again, ran) in enumerate(results):
        assert first == {"rank": 0} and again == "again" and error == OOPS
        assert ran == (["slow", "broken"] if rank == 0 else [])


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_only_rank_zero_holds_answers_all(pool, world_size):
    for rank, (has_it, acquired, errors) in enumerate(pool.run(kept, world_size)):
        assert has_it is (rank == 0)
        assert acquired == [True, False] and errors == [OOPS, OOPS]
