"""A step does not depend on how the batch is cut: into micro-batches, over data-parallel ranks, with empty ranks.

Every cut is compared with the same float64 numbers, so that no two are further apart than twice a bar.
"""

import pytest
import torch

from tests.distributed.cases import Layout, gradients_and_updates, merged
from tests.distributed.noise import bars, errors, loop_errors, noise
from tests.distributed.torch_loop import torch_loop
from tests.tiny import oracle

PRECISIONS = (torch.float64, torch.float32)
ONE_MICRO_BATCH = Layout(max_tokens=2000)
ALL = tuple(range(16))
# Lengths 28, 29 and 6: two data-parallel ranks get one and two trajectories, in bins of 32 one and two micro-batches.
UNEVEN = (0, 3, 5)
SINGLE = (0,)
CUTS = [
    (ALL, ONE_MICRO_BATCH),
    (UNEVEN, ONE_MICRO_BATCH),
    (SINGLE, ONE_MICRO_BATCH),
    (ALL, Layout(max_tokens=32)),
    (ALL, Layout(dp=2, max_tokens=2000)),
    (ALL, Layout(dp=2, max_tokens=32)),
    (ALL, Layout(pp=2, dp=2, max_tokens=32)),
    (ALL, Layout(max_tokens=2000, level="hidden")),
    (ALL, Layout(dp=2, max_tokens=32, level="hidden")),
    (UNEVEN, Layout(dp=2, max_tokens=32)),
    (UNEVEN, Layout(pp=2, dp=2, max_tokens=32)),
    (SINGLE, Layout(dp=2)),
    (SINGLE, Layout(pp=2, dp=2)),
    (SINGLE, Layout(pp=2, dp=2, vpp=2)),
    (SINGLE, Layout(pp=2, dp=2, level="hidden")),
]


@pytest.fixture(scope="module")
def expected(tiny_model, answers):
    """Two steps in float64, by which answers: Hugging Face's numbers, PyTorch's loop, and the bars of both."""

    def numbers(chosen):
        some = answers.select(chosen)
        exact, single = (oracle(tiny_model(), some, dtype) for dtype in PRECISIONS)
        loop, single_loop = (torch_loop(tiny_model(), some, [1e-3, 1e-3], dtype) for dtype in PRECISIONS)
        loop_noise = loop_errors(single_loop.weights, single_loop.metrics, some, loop)
        return exact, loop, bars(noise(single, exact)), bars(loop_noise)

    return {chosen: numbers(chosen) for chosen in (ALL, UNEVEN, SINGLE)}


@pytest.mark.parametrize("chosen, layout", CUTS, ids=[f"{len(chosen)}-answers-{layout}" for chosen, layout in CUTS])
def test_the_step_is_the_same_however_the_batch_is_cut(pool, tiny_model, answers, expected, within, chosen, layout):
    some = answers.select(chosen)
    results = pool.run(gradients_and_updates, layout.world_size, tiny_model(), layout, some, "float32", 2)
    dealt = {tuple(result["sequences"]) for result in results}
    assert sorted(i for hand in dealt for i in hand) == list(range(len(chosen)))
    exact, loop, step_bars, loop_bars = expected[chosen]
    within(errors(results, some, exact), step_bars)
    weights = merged(results, "weights")
    assert weights.keys() == loop.weights.keys()
    for result in results:
        within(loop_errors(weights, result["metrics"], some, loop), loop_bars)
        assert result["replicas"] == 0
