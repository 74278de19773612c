"""A step does not depend on how the batch is cut: into micro-batches, over data-parallel ranks, with empty ranks."""

import pytest
import torch

from tests.distributed.cases import Layout, gradients_and_updates, in_order, merged
from tests.tiny import oracle, relative_error

GRADIENT = 1e-6
# AdamW divides by |gradient| + eps, which enlarges the rounding of near-zero gradients.
WEIGHT = 5e-6
ONE_MICRO_BATCH = Layout(max_tokens=2000)
ALL = tuple(range(16))
# Lengths 28, 29 and 6: two data-parallel ranks get one and two trajectories, in bins of 32 one and two micro-batches.
UNEVEN = (0, 3, 5)
SINGLE = (0,)
CUTS = [
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
def one_micro_batch(pool, tiny_model, answers):
    """One process that sees all answers in one micro-batch, by which answers."""
    return {
        chosen: pool.run(gradients_and_updates, 1, tiny_model(), ONE_MICRO_BATCH, answers.select(chosen), "float32", 2)
        for chosen in (ALL, UNEVEN, SINGLE)
    }


@pytest.mark.parametrize("chosen, layout", CUTS, ids=[f"{len(chosen)}-answers-{layout}" for chosen, layout in CUTS])
def test_the_step_is_the_same_however_the_batch_is_cut(pool, tiny_model, answers, one_micro_batch, chosen, layout):
    some = answers.select(chosen)
    results = pool.run(gradients_and_updates, layout.world_size, tiny_model(), layout, some, "float32", 2)
    want = one_micro_batch[chosen]
    dealt = {tuple(result["sequences"]) for result in results}
    assert sorted(i for hand in dealt for i in hand) == list(range(len(chosen)))
    assert torch.allclose(in_order(results, "log_probs", some), in_order(want, "log_probs", some), rtol=0, atol=5e-6)
    for key, bar in (("gradients", GRADIENT), ("weights", WEIGHT)):
        ours, theirs = merged(results, key), merged(want, key)
        assert ours.keys() == theirs.keys()
        assert max(relative_error(ours[name], theirs[name]) for name in ours) <= bar
    for result in results:
        assert result["grad_norm"] == pytest.approx(want[0]["grad_norm"], rel=1e-6)
        assert result["metrics"] == [pytest.approx(step, rel=1e-5, abs=1e-7) for step in want[0]["metrics"]]
        assert result["replicas"] == 0


@pytest.mark.parametrize("chosen", [UNEVEN, SINGLE], ids=["uneven", "single"])
def test_the_single_micro_batch_is_hugging_faces(tiny_model, answers, one_micro_batch, chosen):
    want = oracle(tiny_model(), answers.select(chosen)).gradients
    ours = merged(one_micro_batch[chosen], "gradients")
    assert max(relative_error(ours[name], want[name]) for name in want) <= 5e-6
