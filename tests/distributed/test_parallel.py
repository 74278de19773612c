"""What rank 0 does alone reaches every rank: its value, its error, and however late it is."""

import time

import pytest
import torch

from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import initialize
from rest_megatron.errors import DataError, RestError


def outcomes(launch: Launch) -> tuple:
    """What each rank sees of a value, of an error and of a value again, and who was asked."""
    parallel = initialize(launch, ParallelConfig(), torch.device("cpu"), seed=0)
    asked = []

    def slow():
        asked.append("slow")
        time.sleep(0.5)
        return {"rank": launch.rank}

    def broken():
        asked.append("broken")
        raise DataError("oops")

    first = parallel.on_main(slow)
    try:
        parallel.on_main(broken)
        error = None
    except RestError as caught:
        error = (type(caught), str(caught))
    return first, error, parallel.on_main(lambda: "again"), asked


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_rank_gets_rank_zeros_value_or_error(pool, world_size):
    results = pool.run(outcomes, world_size)
    for rank, (first, error, again, asked) in enumerate(results):
        assert first == {"rank": 0} and again == "again"
        assert error == (DataError, "data error: oops")
        assert asked == (["slow", "broken"] if rank == 0 else [])
