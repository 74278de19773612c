"""bf16 training: errors no worse than Hugging Face's own bf16 model, float32 accumulation, reduction and masters."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.distributed.cases import Layout, gradients_and_updates, in_order, merged, trained
from tests.distributed.noise import accumulation_bar, distance
from tests.tiny import Answers, Oracle, make_answers, oracle, relative_error

BF16 = torch.bfloat16
WORSE_THAN_HUGGING_FACE = 1.25
STATISTICS = ("logits", "log_probs", "entropy")
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
CASES = [
    (False, Layout()),
    (False, Layout(tp=2, sp=True)),
    (False, Layout(tp=2, pp=2, deepspeed=OFFLOAD)),
    (True, Layout(pp=2, dp=2)),
    (True, Layout(pp=2, dp=2, deepspeed=OFFLOAD)),
    (True, Layout(tp=2, pp=2, sp=True)),
    (True, Layout(tp=2, pp=2, vpp=2, sp=True)),
    (False, Layout(tp=2, dp=2, level="hidden")),
    (True, Layout(tp=2, pp=2, sp=True, level="hidden", max_tokens=2000)),
]
# The rest joins others of these, and is compared in float32 as well.
SLOW = [(False, Layout(tp=2, sp=True)), (True, Layout(pp=2, dp=2)), (False, Layout(tp=2, dp=2, level="hidden"))]
PARAMETERS = [
    pytest.param(
        *(tied, layout),
        id=f"{'tied' if tied else 'untied'}-{layout}",
        marks=pytest.mark.slow if (tied, layout) in SLOW else [],
    )
    for tied, layout in CASES
]
COPIES = 11


def far_from_the_clip(answers: Answers, log_probs) -> Answers:
    """The answers with ratios of 1.49, 1.11, 0.95 and 0.67: rounding must not carry a token over 0.8 or 1.2."""
    offsets = torch.tensor([0.4, 0.1, -0.05, -0.4])[torch.arange(len(log_probs)) % 4]
    return replace(answers, old_log_probs=(log_probs - offsets).float())


@pytest.fixture(scope="module")
def reference(tiny_model):
    """By tied embedding or not: answers, Hugging Face's float64 and Hugging Face's bf16 numbers on the bf16 weights."""

    def numbers(tied):
        path = tiny_model(tied=tied, dtype=BF16)
        answers = far_from_the_clip(make_answers(), oracle(path, make_answers()).log_probs)
        return answers, oracle(path, answers), oracle(path, answers, BF16)

    return {tied: numbers(tied) for tied in (False, True)}


def gradient_distance(gradients: dict, exact: dict) -> float:
    """The `distance` of all gradients, taken as one vector."""
    value, exact = (torch.cat([x[name].double().flatten() for name in sorted(exact)]) for x in (gradients, exact))
    return distance(value, exact)


def distances(statistics: Callable[[str], torch.Tensor], gradients: dict, exact: Oracle) -> dict[str, float]:
    found = {f"bf16 {name}": distance(statistics(name), getattr(exact, name)) for name in STATISTICS}
    return {**found, "bf16 gradient": gradient_distance(gradients, exact.gradients)}


@pytest.mark.parametrize("tied, layout", PARAMETERS)
def test_errors_are_no_worse_than_hugging_faces_own_in_bf16(pool, tiny_model, reference, within, tied, layout):
    answers, exact, theirs = reference[tied]
    path = tiny_model(tied=tied, dtype=BF16)
    results = pool.run(gradients_and_updates, layout.world_size, path, layout, answers, "bfloat16", 3)
    noise = distances(partial(getattr, theirs), theirs.gradients, exact)
    found = distances(lambda name: in_order(results, name, answers), merged(results, "gradients"), exact)
    within(found, {name: WORSE_THAN_HUGGING_FACE * error for name, error in noise.items()})
    for result in results:
        # The norm of one gradient is off by chance; it cannot be off by more than the gradient itself.
        assert result["grad_norm"] == pytest.approx(exact.grad_norm, rel=noise["bf16 gradient"] / 2)
        assert (result["replicas"], result["tied"]) == (0, 0)


def equal_answers(answers: Answers, number: int, copies: int) -> Answers:
    """One answer `copies` times."""
    return answers.select([number] * copies)


ACCUMULATION = [Layout(), Layout(dp=2), Layout(tp=2, pp=2, sp=True), Layout(dp=2, deepspeed=OFFLOAD)]


@pytest.mark.parametrize("layout", ACCUMULATION, ids=str)
def test_gradients_accumulate_and_are_reduced_in_float32(pool, tiny_model, answers, within, layout):
    """Eleven equal micro-batches make eleven times one's gradient; bf16 sums would round to 2^-9 = 2e-3."""
    path, one = tiny_model(dtype=BF16), answers.select([0])
    layout = replace(layout, max_tokens=32, shared=False)  # equal answers would share all they have
    assert one.trajectories[0].length > 16, "one answer must fill a micro-batch"
    run = (gradients_and_updates, layout.world_size, path, layout)
    single = merged(pool.run(*run, one, "bfloat16", 1), "gradients")
    many = merged(pool.run(*run, equal_answers(answers, 0, COPIES), "bfloat16", 1), "gradients")
    assert {gradient.dtype for gradient in many.values()} == {torch.float32}
    error = max(relative_error(many[name], COPIES * gradient.double()) for name, gradient in single.items())
    within({"sum of gradients": error}, {"sum of gradients": accumulation_bar(COPIES)})


@pytest.mark.parametrize("layout", ACCUMULATION, ids=str)
def test_masters_are_float32_and_weights_are_their_rounding(pool, tiny_model, answers, layout):
    """Steps of 1e-6 are far below the bf16 spacing of most weights: only float32 masters keep them."""
    path = tiny_model(dtype=BF16)
    optim = {"lr": 1e-6, "weight_decay": 0.0}
    results = pool.run(trained, layout.world_size, path, layout, answers, 3, optim, "bfloat16")
    masters, weights = merged(results, "masters"), merged(results, "weights")
    before = merged(pool.run(trained, 1, path, Layout(), answers, 0, {}, "bfloat16"), "weights")
    for name, master in masters.items():
        assert master.dtype == torch.float32
        assert weights[name].dtype == BF16
        assert torch.equal(weights[name], master.to(BF16)), name
        if "embed_tokens" not in name:
            moved = (master - before[name].float()).abs()
            assert moved.max() <= 3.5e-6
            assert (moved > 1e-7).float().mean() > 0.5, name
