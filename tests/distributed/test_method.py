"""The method on the actor: algorithms and token weights against Hugging Face, on every layout."""

from dataclasses import replace

import pytest
import torch

from tests.distributed import noise
from tests.distributed.cases import Layout, in_order
from tests.distributed.method_cases import TEXTS, updated, weighed
from tests.tiny import load, policy_loss, relative_error, response_logits

LAYOUTS = [
    Layout(max_tokens=2000),
    Layout(tp=2, pp=2, sp=True, max_tokens=32),
    Layout(pp=2, dp=2, level="hidden"),
    Layout(tp=2, dp=2, sp=True, level="hidden", max_tokens=2000),
]
PRESETS = {
    "paper": (),
    "reference": ("weights.preset=reference",),
    "uniform": ("weights.preset=uniform",),
    "inverse_entropy": ("weights.rule=inverse_entropy",),
    "collision": ("weights.rule=collision",),
    "lm_head": ("weights.rule=lm_head",),
    "response": ("weights.scope=response",),
    "feedback": ("weights.curriculum=feedback", "weights.feedback_patience=1"),
    "no_cot": ("weights.use_cot=false",),
    "top_entropy": ("method.preset=grpo", "weights.rule=top_entropy"),
    "entropy": ("method.preset=grpo", "weights.rule=entropy", "weights.entropy_slope=0.5"),
    "rsi_s": ("method.preset=grpo", "weights.rule=rsi_s"),
    "tao_rl": ("method.preset=grpo", "weights.rule=tao_rl", "weights.entropy_slope=0.5"),
}


def hidden_norms(model_path, answers, dtype):
    """|h|^2 of the hidden state that predicts each response token, from Hugging Face."""
    model = load(model_path, dtype)
    rows = []
    for prompt, response, _ in answers.trajectories:
        states = model.model(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
        rows.append(states[len(prompt) - 1 : -1].detach().square().sum(-1))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def updates(pool, tiny_model, answers):
    """`updates(layout, algorithm)`: what every rank has of an update, launched once."""
    made = {}

    def get(layout, algorithm):
        key = (str(layout), str(algorithm))
        if key not in made:
            made[key] = pool.run(updated, layout.world_size, tiny_model(), layout, answers, algorithm)
        return made[key]

    return get


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_hidden_norms_and_the_update_s_log_probs_are_hugging_faces(pool, tiny_model, answers, bars, within, layout):
    # A token that weighs 0 is not read by the update, nor one of an answer without a gradient.
    weights = answers.loss_weights.clone()
    weights[::7] = 0.0
    some = replace(answers, loss_weights=weights)
    results = pool.run(updated, layout.world_size, tiny_model(), layout, some, {})
    exact, single = (hidden_norms(tiny_model(), answers, dtype) for dtype in (torch.float64, torch.float32))
    error = relative_error(in_order(results, "hidden_norm_squared", answers), exact)
    within({"hidden_norm": error}, noise.bars({"hidden_norm": relative_error(single, exact)}))
    log_probs = in_order(results, "log_probs", answers)
    seen = in_order(results, "update_log_probs", answers)
    read = (weights != 0) & answers.learning
    within({"log_probs": relative_error(seen, torch.where(read, log_probs, answers.old_log_probs))}, bars())
    assert all(result["reference_stays"] is None for result in results)


def gspo_loss(logits, answers, clip):
    """GSPO-token written out (arXiv 2507.18071, Eq. 13-14), one answer at a time."""
    _, log_probs, _ = policy_loss(logits, answers, clip)
    lengths = [t.num_targets for t in answers.trajectories]
    parts = zip(*(x.split(lengths) for x in (log_probs, answers.old_log_probs.to(log_probs.dtype))), strict=True)
    ratio = torch.cat([((new - old).mean().detach() + new - new.detach()).exp() for new, old in parts])
    advantages = answers.advantages.to(log_probs.dtype)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(answers.loss_weights.to(log_probs.dtype) * surrogate).sum()


def kl_loss(logits, answers, clip):
    """The clipped loss plus 0.5 times the k3 estimate of KL to the weights themselves, and 0.1 times the entropy."""
    loss, log_probs, entropy = policy_loss(logits, answers, clip)
    gap = log_probs.detach() - log_probs
    beside = 0.5 * (gap.exp() - 1 - gap) - 0.1 * entropy
    return loss + (answers.loss_weights.to(log_probs.dtype) * beside).sum()


KL = {"kl_coef": 0.5, "entropy_coef": 0.1}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("algorithm, loss", [({"ratio": "sequence"}, gspo_loss), (KL, kl_loss)])
def test_the_loss_and_its_gradient_norm_are_those_written_out(
    tiny_model, answers, updates, bars, layout, algorithm, loss
):
    model = load(tiny_model(), torch.float64)
    value = loss(response_logits(model, answers.trajectories), answers, 0.2)
    value.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    for result in updates(layout, algorithm):
        assert result["metrics"]["actor/loss"] == pytest.approx(float(value), rel=1e-5, abs=1e-7)
        assert result["metrics"]["actor/grad_norm"] == pytest.approx(float(norm), rel=bars()["grad_norm"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_reference_policy_stays_where_the_run_began(updates, layout):
    for result in updates(layout, KL):
        assert result["reference_stays"] is True and result["moved"] > 1e-4


@pytest.fixture(scope="module")
def weights(pool, tiny_model):
    """`weights(layout, preset)`: every rank's token weights; the layout is launched once."""
    made = {}

    def get(layout, preset):
        if str(layout) not in made:
            made[str(layout)] = pool.run(weighed, layout.world_size, tiny_model(), layout, PRESETS, 3)
        return [result[preset] for result in made[str(layout)]]

    return get


@pytest.mark.parametrize("preset", PRESETS)
def test_token_weights_do_not_depend_on_the_layout(weights, preset):
    (alone,) = weights(Layout(max_tokens=2000), preset)
    assert sorted(alone["weights"]) == list(range(len(TEXTS)))
    for result in weights(Layout(tp=2, pp=2, sp=True, max_tokens=140), preset):
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, nan_ok=True)
        for number, weights in result["weights"].items():
            assert torch.allclose(weights, alone["weights"][number], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "response"])
def test_token_weights_do_not_depend_on_the_data_parallel_cut(weights, preset):
    (alone,) = weights(Layout(max_tokens=2000), preset)
    found = {}
    for result in weights(Layout(dp=2, max_tokens=140), preset):
        assert result["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, nan_ok=True)
        found |= result["weights"]
    assert sorted(found) == list(range(len(TEXTS)))
    assert all(torch.allclose(found[i], alone["weights"][i], rtol=1e-5, atol=1e-6) for i in found)


def test_the_exact_score_norm_never_exceeds_its_entropy_bound(weights):
    for result in weights(Layout(tp=2, pp=2, sp=True, max_tokens=140), "paper"):
        exact, bound = 1.0 - result["collision"].double(), -torch.expm1(-result["entropy"].double())
        assert (exact <= bound + 1e-6).all() and (exact > 0.5 * bound).any()
