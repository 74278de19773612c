"""An update whose own forward pass gives the old log-probs, against Hugging Face in float64."""

from dataclasses import replace

import pytest
import torch

from tests.distributed.cases import Layout, in_order, merged
from tests.distributed.noise import gradient_error
from tests.distributed.on_policy_cases import updated_on_policy
from tests.tiny import load, policy_loss, relative_error, response_logits

CAP = 1.2
LAYOUTS = [
    Layout(),
    Layout(dp=2),
    Layout(tp=2, pp=2, sp=True, level="hidden", max_tokens=2000),
]
STATISTICS = ("log_probs", "entropy", "collision")
ALGORITHMS = {
    "token": {},
    "entropy": {"entropy_coef": 0.1},
    "sequence": {"ratio": "sequence"},
}


@pytest.fixture(scope="module")
def engine(answers, exact):
    """The answers, with an engine's log-probs: the policy's, some nats off."""
    noise = 0.3 * torch.randn(len(answers.old_log_probs), generator=torch.Generator().manual_seed(3))
    return replace(answers, old_log_probs=exact().log_probs.float() + noise)


def corrected_gradient(path, engine, entropy_coef):
    """Of -sum_t w_t min(p / p_engine, cap) (A_t log p_t + c H_t), all but log p and H held constant."""
    model = load(path, torch.float64)
    _, log_probs, entropy = policy_loss(response_logits(model, engine.trajectories), engine)
    ratios = (log_probs.detach() - engine.old_log_probs).exp().clamp(max=CAP)
    weights = engine.loss_weights * ratios
    (-weights * (engine.advantages * log_probs + entropy_coef * entropy)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradient_and_statistics_are_hugging_faces(pool, tiny_model, engine, exact, bars, within, layout, name):
    algorithm = {"importance_cap": CAP, "importance_mask": None, **ALGORITHMS[name]}
    results = pool.run(updated_on_policy, layout.world_size, tiny_model(), layout, engine, algorithm)
    wanted = corrected_gradient(tiny_model(), engine, algorithm.get("entropy_coef", 0.0))
    found = {stat: relative_error(in_order(results, stat, engine), getattr(exact(), stat)) for stat in STATISTICS}
    within(found | {"gradient": gradient_error(merged(results, "gradients"), wanted)}, bars())
    left_out = 0.0 if name == "entropy" else float((~engine.learning).double().mean())
    for result in results:
        assert (result["metrics"]["actor/ratio"], result["metrics"]["actor/clip_fraction"]) == (1.0, 0.0)
        assert result["metrics"]["actor/left_out"] == pytest.approx(left_out)
