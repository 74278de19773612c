"""Six AdamW steps against a plain Hugging Face and PyTorch loop in float64: clipping, decay groups, schedule."""

import pytest
import torch

from tests.distributed.cases import Layout, merged, trained
from tests.tiny import load, policy_loss, relative_error, response_logits

WEIGHTS = 1e-4
GRAD_NORM = 1e-5
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


def torch_loop(model_path, answers) -> tuple[dict, list[dict]]:
    """Weights after the steps, and each step's loss, gradient norm before clipping and fraction of clipped tokens."""
    model = load(model_path, torch.float64)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-6)
    history = []
    for learning_rate in LEARNING_RATES:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, log_probs, entropy = policy_loss(response_logits(model, answers.trajectories), answers)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        delta = log_probs.detach() - answers.old_log_probs.double()
        history.append(
            {
                "actor/loss": float(loss),
                "actor/grad_norm": float(norm),
                "actor/lr": learning_rate,
                "actor/ratio": float(delta.exp().mean()),
                "actor/entropy": float(entropy.mean()),
                "actor/approx_kl": float((torch.expm1(delta) - delta).mean()),
                **clip_fractions(delta.exp(), answers.advantages),
            }
        )
    return dict(model.named_parameters()), history


def clip_fractions(ratio, advantages) -> dict[str, float]:
    """Share of tokens whose ratio is held at 1.2 (positive advantage) or 0.8 (negative)."""
    low = ((advantages < 0) & (ratio < 0.8)).double().mean()
    high = ((advantages > 0) & (ratio > 1.2)).double().mean()
    return {"actor/clip_fraction": float(low + high), "actor/clip_fraction_low": float(low)}


@pytest.fixture(scope="module")
def expected(tiny_model, answers):
    """The loop's results by tied embedding or not."""
    return {tied: torch_loop(tiny_model(tied=tied), answers) for tied in (False, True)}


IDS = [f"{'tied' if tied else 'untied'}-{layout}" for tied, layout in LAYOUTS]


@pytest.mark.parametrize("tied, layout", LAYOUTS, ids=IDS)
def test_six_steps_end_where_a_plain_torch_loop_ends(pool, tiny_model, answers, expected, tied, layout):
    results = pool.run(trained, layout.world_size, tiny_model(tied=tied), layout, answers, STEPS, OPTIM)
    weights, history = expected[tied]
    assert any(step["actor/grad_norm"] > 1.0 for step in history), "clipping must act"
    assert history[0]["actor/clip_fraction"] > 0.1
    for result in results:
        assert (result["replicas"], result["tied"]) == (0, 0)
        for step, want in zip(result["metrics"], history, strict=True):
            assert step.keys() == want.keys()
            assert step["actor/lr"] == pytest.approx(want["actor/lr"], rel=1e-12)
            for name, value in want.items():
                assert step[name] == pytest.approx(value, rel=GRAD_NORM, abs=1e-7), name
    ours = merged(results, "weights")
    assert ours.keys() == {name for name in weights if not (tied and name == "lm_head.weight")}
    errors = {name: relative_error(ours[name], weights[name].detach()) for name in ours}
    assert max(errors.values()) <= WEIGHTS, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize("layout", [Layout(pp=2, dp=3), Layout(tp=2, dp=3, sp=True)], ids=str)
def test_copies_stay_bitwise_equal_when_sums_have_three_terms(pool, tiny_model, answers, layout):
    for result in pool.run(trained, layout.world_size, tiny_model(tied=True), layout, answers, STEPS, OPTIM):
        assert (result["replicas"], result["tied"]) == (0, 0)
