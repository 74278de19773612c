"""Truncated importance sampling and its mask, against loops and exact expectations in float64."""

import math

import pytest
import torch

from rest_megatron.method.importance import importance_ratios, masked_answers, token_mismatch

LENGTHS = (1, 7, 3, 12, 5, 2)
INDEX = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))


def log_probs(spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The actor's and the engine's: answers that differ as a whole, and tokens that differ within them."""
    generator = torch.Generator().manual_seed(3)
    engine = -4 * torch.rand(len(INDEX), generator=generator)
    whole = spread * torch.randn(len(LENGTHS), generator=generator)
    return engine + whole[INDEX] + spread * torch.randn(len(INDEX), generator=generator), engine


def written_out(actor, engine, cap, mask) -> list[float]:
    """One answer and one token at a time."""
    ratios, first = [], 0
    for length in LENGTHS:
        gaps = [float(actor[i]) - float(engine[i]) for i in range(first, first + length)]
        geometric = math.exp(math.fsum(gaps) / length)
        outside = mask is not None and not 1 / mask <= geometric <= mask
        ratios += [0.0 if outside else 1.0 if cap is None else min(math.exp(gap), cap) for gap in gaps]
        first += length
    return ratios


@pytest.mark.parametrize("cap", [None, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("mask", [None, 1.1, 2.0])
@pytest.mark.parametrize("spread", [0.02, 0.7])
def test_the_ratios_are_those_written_out(cap, mask, spread):
    actor, engine = log_probs(spread)
    ratios = importance_ratios(actor, engine, INDEX, len(LENGTHS), cap, mask)
    assert ratios.dtype == torch.float32
    assert ratios.tolist() == pytest.approx(written_out(actor, engine, cap, mask), rel=1e-6)


def test_the_cases_above_have_tokens_above_the_cap_and_answers_on_both_sides_of_the_mask():
    actor, engine = log_probs(0.7)
    assert 0 < token_mismatch(actor, engine, 2.0).clipped.mean() < 0.5
    assert 0 < masked_answers(actor, engine, INDEX, len(LENGTHS), 2.0).sum() < len(LENGTHS)


@pytest.mark.parametrize("seed", range(5))
def test_corrected_means_under_the_engine_are_the_actor_s_until_the_cap_cuts_them(seed):
    generator = torch.Generator().manual_seed(seed)
    actor, engine = (torch.randn(6, generator=generator).double().log_softmax(0) for _ in range(2))
    values = torch.randn(6, generator=generator).double()

    def corrected(cap):
        ratios = importance_ratios(actor, engine, torch.arange(6), 6, cap, None)
        return float((engine.exp() * ratios * values).sum())

    wanted = float((actor.exp() * values).sum())
    assert corrected(1e6) == pytest.approx(wanted, abs=1e-6)
    assert corrected(None) == pytest.approx(float((engine.exp() * values).sum()), abs=1e-6)
    above = (actor - engine).exp().clamp(max=1.5)
    assert corrected(1.5) == pytest.approx(float((engine.exp() * above * values).sum()), abs=1e-6)


def test_k3_estimates_the_divergence_of_the_actor_from_the_engine():
    generator = torch.Generator().manual_seed(0)
    actor, engine = (torch.randn(6, generator=generator).double().log_softmax(0) for _ in range(2))
    divergence = float((engine.exp() * (engine - actor)).sum())
    found = token_mismatch(actor, engine, 2.0)
    assert float((engine.exp() * found.k3).sum()) == pytest.approx(divergence, rel=1e-12)
    assert found.distance.tolist() == pytest.approx((actor - engine).abs().tolist())
    assert found.clipped.tolist() == [float(math.exp(a - e) > 2.0) for a, e in zip(actor, engine, strict=True)]


@pytest.mark.parametrize(
    "gaps, masked",
    [
        ((0.69, 0.69), False),
        ((0.70, 0.70), True),
        ((-0.69, -0.69), False),
        ((-0.70, -0.70), True),
        ((3.0, -3.0), False),
        ((1.5, 0.0), True),
        ((1.3, 0.0), False),
    ],
)
def test_the_geometric_mean_of_an_answer_decides_whether_it_is_masked(gaps, masked):
    actor = torch.tensor([*gaps, 0.5])
    index = torch.tensor([0, 0, 1])
    assert masked_answers(actor, torch.zeros(3), index, 2, 2.0).tolist() == [masked, False]
    ratios = importance_ratios(actor, torch.zeros(3), index, 2, 2.0, 2.0)
    assert (ratios == 0).tolist() == [masked, masked, False]


@pytest.mark.parametrize("gap, ratio", [(1e4, math.exp(20)), (25.0, math.exp(20)), (-1e4, math.exp(-20))])
def test_nothing_overflows(gap, ratio):
    actor = torch.tensor([gap])
    ratios = importance_ratios(actor, torch.zeros(1), torch.zeros(1, dtype=torch.int64), 1, 1e12, None)
    assert ratios.item() == pytest.approx(ratio, rel=1e-6)
    assert token_mismatch(actor, torch.zeros(1), 2.0).k3.isfinite()


@pytest.mark.parametrize("actor, engine", [(math.nan, -1.0), (-math.inf, -1.0), (-1.0, -math.inf), (-1.0, math.nan)])
@pytest.mark.parametrize("cap, mask", [(2.0, 2.0), (2.0, None), (None, 2.0)])
def test_a_log_prob_that_is_not_finite_spoils_its_token_and_hides_nothing(actor, engine, cap, mask):
    old, rollout = torch.tensor([-1.0, actor, -1.0]), torch.tensor([-1.0, engine, -1.0])
    ratios = importance_ratios(old, rollout, torch.tensor([0, 0, 1]), 2, cap, mask)
    assert ratios.isnan().tolist() == [False, True, False]
    assert ratios[0] == ratios[2] == 1.0
    assert token_mismatch(old, rollout, cap).distance.isnan().tolist() == [False, True, False]


def test_without_cap_and_mask_log_probs_are_not_read():
    ratios = importance_ratios(torch.full((3,), math.nan), torch.zeros(3), torch.tensor([0, 0, 1]), 2, None, None)
    assert ratios.tolist() == [1.0, 1.0, 1.0]


def test_no_gradient_flows_through_the_ratios():
    actor, engine = (x.requires_grad_() for x in log_probs(0.1))
    assert not importance_ratios(actor, engine, INDEX, len(LENGTHS), 2.0, 2.0).requires_grad


def test_a_rank_without_tokens_has_no_ratios():
    none = torch.empty(0)
    assert importance_ratios(none, none, none.long(), 0, 2.0, 2.0).shape == (0,)
    assert importance_ratios(none, none, none.long(), 1, 2.0, 2.0).shape == (0,)
    assert masked_answers(none, none, none.long(), 1, 2.0).tolist() == [False]
