"""Six AdamW steps against a plain Hugging Face and PyTorch loop in float64: clipping, decay groups, schedule."""

import pytest
import torch

from tests.distributed.cases import Layout, merged, trained
from tests.distributed.noise import bars, loop_errors
from tests.distributed.torch_loop import torch_loop

STEPS = 6
OPTIM = {
    "lr": 1e-3,
    "warmup_steps": 2,
    "schedule": "linear",
    "min_lr_ratio": 0.1,
    "clip_grad": 1.0,
    "weight_decay": 0.1,
    "betas": (0.9, 0.95),
}
# Warm-up over two steps to the peak, then in four steps towards a tenth of it.
LEARNING_RATES = [0.5e-3, 1e-3, 1e-3, 0.775e-3, 0.55e-3, 0.325e-3]
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
LAYOUTS = [
    (False, Layout()),
    (False, Layout(tp=2, dp=2)),
    (False, Layout(tp=2, pp=2, sp=True)),
    (False, Layout(pp=2, dp=2, deepspeed=OFFLOAD)),
    (True, Layout(tp=2, sp=True)),
    (True, Layout(pp=2, dp=2)),
    (True, Layout(tp=2, pp=2, vpp=2, sp=True)),
    (True, Layout(tp=2, dp=2, sp=True, level="hidden")),
]


@pytest.fixture(scope="module")
def expected(tiny_model, answers):
    """By tied embedding or not: the loop in float64, and the bars that follow from the loop in float32."""

    def loops(path):
        loop = torch_loop(path, answers, LEARNING_RATES)
        single = torch_loop(path, answers, LEARNING_RATES, torch.float32)
        return loop, bars(loop_errors(single.weights, single.metrics, answers, loop))

    return {tied: loops(tiny_model(tied=tied)) for tied in (False, True)}


IDS = [f"{'tied' if tied else 'untied'}-{layout}" for tied, layout in LAYOUTS]


@pytest.mark.parametrize("tied, layout", LAYOUTS, ids=IDS)
def test_six_steps_end_where_a_plain_torch_loop_ends(pool, tiny_model, answers, expected, within, tied, layout):
    results = pool.run(trained, layout.world_size, tiny_model(tied=tied), layout, answers, STEPS, OPTIM)
    loop, loop_bars = expected[tied]
    assert any(step["actor/grad_norm"] > 1.0 for step in loop.metrics), "clipping must act"
    assert loop.metrics[0]["actor/clip_fraction"] > 0.1
    weights = merged(results, "weights")
    assert weights.keys() == loop.weights.keys()
    for result in results:
        assert (result["replicas"], result["tied"]) == (0, 0)
        assert [step["actor/lr"] for step in result["metrics"]] == pytest.approx(LEARNING_RATES, rel=1e-12)
        assert all(step.keys() == want.keys() for step, want in zip(result["metrics"], loop.metrics, strict=True))
        within(loop_errors(weights, result["metrics"], answers, loop), loop_bars)


# No decay at all moves a weight by a part in 2000.
FAR = 10
MISTAKES = {
    "beta2": {"betas": (0.9, 0.999)},
    "decay": {"weight_decay": 0.0},
    "clipping": {"clip_grad": 2.0},
    "schedule": {"learning_rates": [*LEARNING_RATES[1:], 0.1e-3]},
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_optimizer_is_far_outside_the_bar(tiny_model, answers, expected, mistake):
    loop, loop_bars = expected[False]
    wrong = torch_loop(tiny_model(), answers, **{"learning_rates": LEARNING_RATES, **mistake})
    assert loop_errors(wrong.weights, wrong.metrics, answers, loop)["weights"] >= FAR * loop_bars["weights"]


@pytest.mark.parametrize("layout", [Layout(pp=2, dp=3), Layout(tp=2, dp=3, sp=True)], ids=str)
def test_copies_stay_bitwise_equal_when_sums_have_three_terms(pool, tiny_model, answers, layout):
    for result in pool.run(trained, layout.world_size, tiny_model(tied=True), layout, answers, STEPS, OPTIM):
        assert (result["replicas"], result["tied"]) == (0, 0)
