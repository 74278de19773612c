"""`rest_megatron.method.weights` against what the paper proves: Lemma 2 and Theorem 2."""

import pytest
import torch

from rest_kernels import reference
from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.weights import region_weights, token_statistic, token_weights

WIDE = {"clamp_min": 1e-12, "clamp_max": 1e12}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 100.0])
def test_lemma_2_the_exact_score_norm_is_below_the_entropy_bound(spread):
    logits = spread * torch.randn(2000, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs = logits.softmax(-1)
    labels = torch.eye(37, dtype=torch.float64)
    # E||s||^2 over the label y, with s = onehot(y) - p the gradient of log p_y with respect to the logits.
    expected = (probs[:, :, None] * (labels - probs[:, None, :]) ** 2).sum(dim=(1, 2))
    norm = token_statistic("collision", reference.entropy(logits), reference.collision(logits), torch.ones(2000))
    torch.testing.assert_close(norm, expected, rtol=1e-9, atol=1e-12)
    assert (norm <= 1 - torch.exp(-reference.entropy(logits)) + 1e-12).all()


def test_the_lm_head_statistic_is_the_expected_squared_gradient_of_the_head():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, dtype=torch.float64, generator=generator)
    head = torch.randn(11, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    log_probs = torch.log_softmax(head @ hidden, dim=-1)
    squares = [torch.autograd.grad(x, head, retain_graph=True)[0].square().sum() for x in log_probs]
    logits = (head @ hidden).detach()[None]
    statistic = token_statistic(
        "lm_head", reference.entropy(logits), reference.collision(logits), hidden.square().sum()[None]
    )
    torch.testing.assert_close(statistic[0], (log_probs.exp().detach() * torch.stack(squares)).sum())


def test_theorem_2_the_weights_solve_the_lagrange_conditions():
    """At the least sum w^2 beta with sum w = T all 2 w_t beta_t are equal, so w_t = T / sum(1/beta) / beta_t."""
    beta = vector(0.02, 0.3, 0.55, 0.9)
    regions = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(0))
    by_region = region_weights(beta, WeightsConfig(rule="collision", **WIDE))
    weights = token_weights(by_region, regions, torch.zeros(500, dtype=torch.int64), 1).double()
    slopes = 2 * weights * beta[regions]
    torch.testing.assert_close(slopes, slopes[:1].expand(500), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights, 500 / (1 / beta[regions]).sum() / beta[regions], rtol=1e-6, atol=0)


def test_theorem_2_no_other_weights_of_mean_one_have_a_smaller_variance_bound():
    """sum w^2 beta with beta = 1 - exp(-H): the weights of this module against the exact optimum and against others."""
    generator = torch.Generator().manual_seed(0)
    entropy = vector(0.03, 0.2, 0.6, 1.4)
    regions = torch.randint(0, 4, (200,), generator=generator)
    beta = 1 - torch.exp(-entropy)[regions]
    by_region = region_weights(entropy, WeightsConfig(rule="score_bound", **WIDE))
    weights = token_weights(by_region, regions, torch.zeros(200, dtype=torch.int64), 1).double()

    best = (weights**2 * beta).sum()
    # Cauchy-Schwarz: (sum w)^2 <= sum w^2 beta * sum 1/beta, so the least value at sum w = T is T^2 / sum 1/beta.
    torch.testing.assert_close(best, 200**2 / (1 / beta).sum(), rtol=1e-6, atol=0)
    for scale in (1e-3, 1e-1, 1.0):
        other = weights + scale * torch.randn(1000, 200, generator=generator, dtype=torch.float64)
        other = other - other.mean(dim=1, keepdim=True) + 1.0
        assert ((other**2 * beta).sum(dim=1) > best).all()
