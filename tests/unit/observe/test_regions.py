"""Token weight, ratio and clipping by region, against the loss kernels and autograd."""

import math

import pytest
import torch

from rest_kernels import vocab_parallel_ppo_loss
from rest_kernels.reference import ppo_token_loss
from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.observe.regions import clipped_tokens, region_metrics, region_totals, token_ratios

CLIPS = [
    {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2},
    {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28},
    {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "clip_ratio_dual": 3.0},
]


def batch(num_tokens: int = 400, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Ratios on both sides of every clip; advantages of either sign and 0; some tokens of weight 0."""
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(num_tokens, dtype=dtype, generator=generator) * 4
    advantages = torch.randn(num_tokens, dtype=dtype, generator=generator)
    advantages[::7] = 0.0
    weights = torch.rand(num_tokens, dtype=dtype, generator=generator) + 0.3
    weights[::11] = 0.0
    return {
        "regions": torch.randint(0, 4, (num_tokens,), generator=generator),
        "weights": weights,
        "old_log_probs": log_probs + torch.randn(num_tokens, dtype=dtype, generator=generator),
        "log_probs": log_probs,
        "advantages": advantages,
    }


@pytest.mark.parametrize("clips", CLIPS)
def test_clipped_tokens_are_those_without_policy_gradient(clips):
    b = batch(dtype=torch.float64)
    leaf = b["log_probs"].clone().requires_grad_()
    loss = ppo_token_loss(leaf, b["old_log_probs"], b["advantages"], **clips)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    clipped = clipped_tokens(b["old_log_probs"], b["log_probs"], b["advantages"], AlgorithmConfig(**clips))
    assert torch.equal(clipped, (gradient == 0) & (b["advantages"] != 0))
    assert 20 < clipped.sum() < 380


@pytest.mark.parametrize("clips", CLIPS)
def test_the_totals_add_up_to_the_metrics_of_the_loss_kernel(clips):
    b = batch()
    logits = torch.randn(400, 31, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 31, (400,), generator=torch.Generator().manual_seed(2))
    log_probs = torch.log_softmax(logits, -1)[torch.arange(400), labels]
    old = log_probs + (b["old_log_probs"] - b["log_probs"])
    out = vocab_parallel_ppo_loss(logits, labels, old, b["advantages"], b["weights"], **clips)
    totals = region_totals(
        b["regions"], b["weights"], old, out.log_probs, b["advantages"], AlgorithmConfig(**clips)
    ).sum(1)
    assert totals[0] == 400
    assert totals[1] == out.metrics["num_tokens"] == 400 - len(range(0, 400, 11))
    assert totals[3].item() == pytest.approx(out.metrics["ratio"].item(), rel=1e-5)
    assert totals[4] == out.metrics["clipped"] > 0


def test_totals_by_hand():
    totals = region_totals(
        regions=torch.tensor([0, 0, 2, 3]),
        weights=torch.tensor([0.5, 1.5, 2.0, 0.0]),
        old_log_probs=torch.tensor([0.0, -math.log(2), -1.0, -3.0]),
        log_probs=torch.tensor([0.0, 0.0, -1.0, 0.0]),
        advantages=torch.tensor([1.0, 1.0, -1.0, 1.0]),
        algorithm=AlgorithmConfig(),
    )
    expected = [[2, 0, 1, 1], [2, 0, 1, 0], [2, 0, 2, 0], [3, 0, 1, 0], [1, 0, 0, 0]]
    torch.testing.assert_close(totals, torch.tensor(expected, dtype=torch.float64))


def test_totals_add_up_over_any_cut_of_the_batch():
    b = batch()
    whole = region_totals(**b, algorithm=AlgorithmConfig())
    parts = [
        region_totals(**{name: values[i : i + 130] for name, values in b.items()}, algorithm=AlgorithmConfig())
        for i in range(0, 400, 130)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


def test_metrics_by_hand_and_of_a_region_without_tokens():
    totals = torch.tensor(
        [[6, 0, 3, 1], [4, 0, 2, 0], [1.0, 0.0, 3.0, 0.0], [5, 0, 2, 0], [1, 0, 2, 0]], dtype=torch.float64
    )
    metrics = region_metrics(totals)
    assert [metrics[f"share/{r}"] for r in ("format", "tool_name", "parameters", "cot")] == [0.6, 0.0, 0.3, 0.1]
    assert [metrics[f"weight_mass/{r}"] for r in ("format", "tool_name", "parameters", "cot")] == [0.25, 0, 0.75, 0]
    assert (metrics["ratio/format"], metrics["clip_fraction/format"]) == (1.25, 0.25)
    assert (metrics["ratio/parameters"], metrics["clip_fraction/parameters"]) == (1.0, 1.0)
    assert all(math.isnan(metrics[f"{name}/{r}"]) for name in ("ratio", "clip_fraction") for r in ("tool_name", "cot"))
    assert len(metrics) == 16


def test_a_rank_without_tokens_adds_nothing():
    empty = torch.empty(0)
    totals = region_totals(empty.long(), empty, empty, empty, empty, AlgorithmConfig())
    assert totals.tolist() == [[0.0] * 4] * 5


def test_one_token_that_is_not_finite_spoils_only_its_region():
    b = batch(40)
    b["regions"][:20], b["regions"][20:] = 1, 3
    b["log_probs"][1] = math.nan
    metrics = region_metrics(region_totals(**b, algorithm=AlgorithmConfig()))
    assert math.isnan(metrics["ratio/tool_name"]) and math.isfinite(metrics["ratio/cot"])


@pytest.mark.parametrize("gap, expected", [(25.0, 20.0), (-300.0, -20.0), (1.5, 1.5)])
def test_ratios_are_held_within_exp_20(gap, expected):
    ratio = token_ratios(torch.zeros(1, dtype=torch.float64), torch.tensor([gap]).double(), AlgorithmConfig())
    assert ratio.item() == pytest.approx(math.exp(expected), rel=1e-12)


def test_with_ratios_of_sequences_a_whole_answer_is_clipped_or_none_of_it():
    settings = AlgorithmConfig(ratio="sequence", clip_ratio_high=0.3)
    old = torch.zeros(5)
    new = torch.tensor([0.9, -0.3, 0.0, 0.5, 0.1])
    index = torch.tensor([0, 0, 1, 1, 0])
    ratio = token_ratios(old, new, settings, index)
    first, second = math.exp(0.7 / 3), math.exp(0.25)
    assert ratio.tolist() == pytest.approx([first, first, second, second, first], rel=1e-6)
    assert clipped_tokens(old, new, torch.ones(5), settings, index).tolist() == [False] * 5
    tight = AlgorithmConfig(ratio="sequence", clip_ratio_high=0.27)
    assert clipped_tokens(old, new, torch.ones(5), tight, index).tolist() == [False, False, True, True, False]


def test_ratios_of_sequences_need_to_know_the_sequences():
    with pytest.raises(ValueError, match="needs sequence_index"):
        token_ratios(torch.zeros(2), torch.zeros(2), AlgorithmConfig(ratio="sequence"))
