"""The actor in float32 on every layout against Hugging Face in float64: same weights, same answers, same numbers.

Bars are max |d| / max |reference|. Hugging Face's own float32 is up to 8e-7 off in logits and 3e-6 in a gradient.
"""

import pytest
import torch

from tests.distributed.cases import PLAIN_CUTS, Layout, gradients_and_updates, in_order, merged
from tests.tiny import oracle, relative_error

LOGITS = 1e-6
TOKEN_STATISTICS = 1e-6
GRADIENT = 5e-6
GRAD_NORM = 1e-6

FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}


def selective(*modules: str) -> dict:
    return {"recompute_granularity": "selective", "recompute_modules": list(modules)}


CUTS = [
    *PLAIN_CUTS,
    Layout(tp=2, sp=True),
    Layout(tp=2, pp=2, sp=True),
    Layout(pp=2, vpp=2),
    Layout(tp=2, pp=2, vpp=2, sp=True),
]
OPTIONS = [
    Layout(max_tokens=32),
    Layout(max_tokens=2000),
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
every_case = pytest.mark.parametrize(
    "family, tied, layout", CASES, ids=[f"{f}-{'tied' if t else 'untied'}-{layout}" for f, t, layout in CASES]
)


@every_case
def test_logits_log_probs_and_entropy_are_hugging_faces(measure, exact, answers, family, tied, layout):
    results, want = measure(family, tied, layout), exact(family, tied)
    assert relative_error(in_order(results, "logits", answers), want.logits) <= LOGITS
    assert relative_error(in_order(results, "log_probs", answers), want.log_probs) <= TOKEN_STATISTICS
    assert relative_error(in_order(results, "entropy", answers), want.entropy) <= TOKEN_STATISTICS
    collision = want.logits.softmax(-1).square().sum(-1)
    assert relative_error(in_order(results, "collision", answers), collision) <= 2 * TOKEN_STATISTICS


@every_case
def test_every_gradient_and_the_global_norm_are_hugging_faces(measure, exact, family, tied, layout):
    results, want = measure(family, tied, layout), exact(family, tied)
    gradients = merged(results, "gradients")
    assert gradients.keys() == want.gradients.keys()
    errors = {name: relative_error(gradients[name], value) for name, value in want.gradients.items()}
    assert max(errors.values()) <= GRADIENT, max(errors.items(), key=lambda item: item[1])
    for result in results:
        assert result["grad_norm"] == pytest.approx(want.grad_norm, rel=GRAD_NORM)


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
def test_masked_tokens_are_read_but_never_learned(pool, tiny_model, masked_answers, tied, layout):
    path = tiny_model(tied=tied)
    want = oracle(path, masked_answers)
    assert len(want.log_probs) < sum(len(t.response_ids) for t in masked_answers.trajectories)
    results = pool.run(gradients_and_updates, layout.world_size, path, layout, masked_answers)
    assert relative_error(in_order(results, "logits", masked_answers), want.logits) <= LOGITS
    for name in ("log_probs", "entropy"):
        assert relative_error(in_order(results, name, masked_answers), getattr(want, name)) <= TOKEN_STATISTICS
    gradients = merged(results, "gradients")
    assert max(relative_error(gradients[name], value) for name, value in want.gradients.items()) <= GRADIENT
    assert results[0]["grad_norm"] == pytest.approx(want.grad_norm, rel=GRAD_NORM)
