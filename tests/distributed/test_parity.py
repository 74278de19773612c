"""The actor in float32 on every layout against Hugging Face in float64: same weights, same answers, same numbers."""

import math

import pytest
import torch

from tests.distributed.cases import PLAIN_LAYOUTS, Layout, gradients_and_updates, merged
from tests.distributed.noise import errors
from tests.tiny import oracle

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


def selective(*modules: str) -> dict:
    return {"recompute_granularity": "selective", "recompute_modules": list(modules)}


CUTS = [
    *PLAIN_LAYOUTS,
    Layout(tp=2, sp=True),
    Layout(tp=2, pp=2, sp=True),
    Layout(pp=2, vpp=2),
    Layout(tp=2, pp=2, vpp=2, sp=True),
]
OPTIONS = [
    Layout(max_tokens=32),
    Layout(max_tokens=2000),
    Layout(max_tokens=2000, shared=False),
    Layout(tp=2, pp=2, sp=True, max_tokens=32),
    Layout(pp=2, dp=2, max_tokens=2000),
    Layout(pp=2, vpp=2, max_tokens=2000),
    Layout(tp=2, pp=2, megatron=FULL),
    Layout(pp=2, vpp=2, megatron=FULL),
    Layout(tp=2, sp=True, megatron=selective("core_attn")),
    Layout(tp=2, sp=True, megatron=selective("core_attn", "mlp")),
    Layout(tp=2, dp=2, deepspeed=OFFLOAD),
    Layout(pp=2, dp=2, deepspeed=OFFLOAD),
]
TIED = [
    *CUTS[:3],
    Layout(tp=2, pp=2),
    Layout(pp=2, dp=2),
    Layout(tp=2, pp=2, sp=True, max_tokens=32),
    Layout(tp=2, pp=2, vpp=2, sp=True),
    Layout(pp=2, dp=2, deepspeed=OFFLOAD),
]
HIDDEN = [
    ("qwen3", False, Layout(level="hidden")),
    ("qwen3", False, Layout(tp=2, dp=2, level="hidden")),
    ("qwen3", False, Layout(tp=2, pp=2, sp=True, level="hidden", max_tokens=2000)),
    ("qwen3", True, Layout(level="hidden", max_tokens=32)),
    ("qwen3", True, Layout(tp=2, pp=2, vpp=2, sp=True, level="hidden")),
    ("llama", False, Layout(tp=2, pp=2, level="hidden")),
]
FAMILIES = [Layout(), Layout(tp=2, pp=2), Layout(tp=2, sp=True)]
CASES = [
    *(("qwen3", False, layout) for layout in CUTS + OPTIONS),
    *(("qwen3", True, layout) for layout in TIED),
    *(("qwen2", False, layout) for layout in FAMILIES),
    *(("llama", False, layout) for layout in FAMILIES),
    *HIDDEN,
    ("qwen2", True, Layout(tp=2, pp=2)),
    ("llama", True, Layout(tp=2, pp=2)),
]
# What each of these joins is joined or tested alone by others as well.
SLOW = [
    *(("qwen3", False, Layout(**cut)) for cut in ({"tp": 2, "dp": 2}, {"pp": 2, "dp": 2}, {"pp": 2, "vpp": 2})),
    ("qwen3", False, Layout(max_tokens=2000)),
    ("qwen3", False, Layout(pp=2, vpp=2, max_tokens=2000)),
    ("qwen3", False, Layout(tp=2, pp=2, megatron=FULL)),
    ("qwen3", False, Layout(tp=2, sp=True, megatron=selective("core_attn"))),
    ("qwen3", False, Layout(pp=2, dp=2, deepspeed=OFFLOAD)),
    ("qwen3", False, Layout(tp=2, dp=2, level="hidden")),
    ("qwen3", True, Layout(tp=2)),
    ("qwen3", True, Layout(tp=2, pp=2)),
    ("qwen3", True, Layout(level="hidden", max_tokens=32)),
    *((family, False, Layout(tp=2, sp=True)) for family in ("qwen2", "llama")),
]
every_case = pytest.mark.parametrize(
    "family, tied, layout",
    [
        pytest.param(
            *(family, tied, layout),
            id=f"{family}-{'tied' if tied else 'untied'}-{layout}",
            marks=pytest.mark.slow if (family, tied, layout) in SLOW else [],
        )
        for family, tied, layout in CASES
    ],
)


@every_case
def test_statistics_gradients_and_the_global_norm_are_hugging_faces(
    measure, exact, bars, within, answers, family, tied, layout
):
    within(errors(measure(family, tied, layout), answers, exact(family, tied)), bars(family, tied))


@every_case
def test_every_rank_holds_the_same_statistics_and_the_same_replicated_weights(measure, family, tied, layout):
    results = measure(family, tied, layout)
    for result in results:
        assert (result["replicas"], result["tied"]) == (0, 0)
        first = next(other for other in results if other["sequences"] == result["sequences"])
        for name in ("log_probs", "entropy", "collision"):
            assert torch.equal(result[name], first[name])
        assert result["metrics"] == results[0]["metrics"]


@pytest.mark.parametrize(
    "tied, layout",
    [
        (False, Layout()),
        (False, Layout(tp=2, pp=2, sp=True, max_tokens=32)),
        (False, Layout(tp=2, pp=2, level="hidden")),
        (True, Layout(pp=2, dp=2, level="hidden")),
    ],
    ids=str,
)
def test_masked_tokens_are_read_but_never_learned(pool, tiny_model, bars, within, masked_answers, tied, layout):
    path = tiny_model(tied=tied)
    want = oracle(path, masked_answers)
    assert len(want.log_probs) < sum(len(t.response_ids) for t in masked_answers.trajectories)
    results = pool.run(gradients_and_updates, layout.world_size, path, layout, masked_answers)
    within(errors(results, masked_answers, want), bars(tied=tied))


def test_sharing_changes_the_gradient_by_rounding_alone(measure):
    shared, plain = (
        merged(measure("qwen3", False, Layout(max_tokens=2000, shared=on)), "gradients") for on in (True, False)
    )
    difference, norm = (
        math.fsum(float(x.double().square().sum()) for x in tensors)
        for tensors in ([shared[name] - plain[name] for name in plain], plain.values())
    )
    assert math.sqrt(difference / norm) <= 1e-6
