"""Drawing tokens by inverting the cumulative distribution, on one shard; the sharded draw is tested with gloo."""

import pytest
import torch

from rest_megatron.rollout.draw import BLOCK, NO_TOKEN, draw_tokens

INF = float("inf")
GRID = 4096
# A logit over the temperature of up to 16 is rounded to float32 by up to 5e-7, and so is the log of the sum.
LOG_PROB = 2e-6
# The largest float32 below 1, and one float64 that rounds to 1 in float32.
ALMOST_ONE = (1 - 2**-24, 1 - 2**-53)


def make_logits(rows: int = 1, vocab: int = 50, seed: int = 0):
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def exact_log_probs(logits, temperature):
    return (logits.double() / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_a_uniform_grid_draws_every_token_as_often_as_its_probability(temperature):
    logits = make_logits()
    uniforms = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tokens, log_probs = draw_tokens(logits.expand(GRID, -1), uniforms, temperature, None)
    exact = exact_log_probs(logits, temperature)[0]
    counts = torch.bincount(tokens, minlength=50)
    assert ((counts - GRID * exact.exp()).abs() <= 1 + 1e-3).all()
    assert (tokens.diff() >= 0).all(), "one number decides: tokens come in the order of the vocabulary"
    assert torch.allclose(log_probs, exact[tokens], rtol=0, atol=LOG_PROB)
    assert tokens.dtype == torch.int64 and log_probs.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_log_probs_are_those_of_the_drawn_tokens(dtype):
    logits = make_logits(200).to(dtype)
    uniforms = torch.rand(200, generator=torch.Generator().manual_seed(1))
    tokens, log_probs = draw_tokens(logits, uniforms, 0.7, None)
    exact = exact_log_probs(logits, 0.7).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert torch.allclose(log_probs, exact, rtol=0, atol=LOG_PROB)


@pytest.mark.parametrize("uniform", [0.0, 0.5, *ALMOST_ONE])
@pytest.mark.parametrize("allowed", [[0], [49], [7], [3, 4, 40], [0, 49]])
def test_an_impossible_token_is_never_drawn(uniform, allowed):
    logits = torch.full((1, 50), -INF)
    logits[0, allowed] = make_logits()[0, allowed]
    tokens, log_probs = draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64), 1.0, None)
    assert int(tokens) in allowed
    assert float(log_probs) == pytest.approx(float(exact_log_probs(logits, 1.0)[0, tokens]), abs=LOG_PROB)
    assert int(tokens) == (allowed[0] if uniform == 0 else allowed[-1]) or uniform == 0.5


@pytest.mark.parametrize("uniform", ALMOST_ONE)
def test_rounding_does_not_draw_a_token_that_underflows(uniform):
    """The last columns hold e^-1000 = 0 in floating point; the cumulative sum may end a hair below the total."""
    logits = torch.cat([make_logits(vocab=10_000), torch.full((1, 50), -1000.0)], dim=1)
    tokens, log_probs = draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64), 1.0, None)
    assert int(tokens) < 10_000 and float(log_probs) > -50


def test_large_logits_do_not_overflow():
    logits = make_logits(8) + 1e4
    uniforms = torch.full((8,), 0.5)
    shifted, log_probs = draw_tokens(logits, uniforms, 1.0, None)
    plain, want = draw_tokens(logits - 1e4, uniforms, 1.0, None)
    assert torch.equal(shifted, plain) and torch.allclose(log_probs, want, rtol=0, atol=LOG_PROB)


@pytest.mark.parametrize("row", [[float("nan"), 0.0, 1.0], [INF, 0.0, 1.0], [INF, -INF, INF], [-INF, -INF, -INF]])
def test_a_row_without_a_distribution_gives_no_token_and_spares_its_neighbours(row):
    logits = torch.tensor([[0.0, 1.0, 2.0], row, [2.0, 1.0, 0.0]])
    tokens, log_probs = draw_tokens(logits, torch.full((3,), 0.5), 1.0, None)
    assert tokens.tolist() == [2, NO_TOKEN, 0]
    assert log_probs[[0, 2]].isfinite().all()


@pytest.mark.parametrize("vocab", [255, 256, 257, 4096, 4097, 9000])
def test_a_vocabulary_of_many_blocks_is_drawn_as_by_one_cumulative_sum(vocab):
    logits = make_logits(4, vocab).repeat_interleave(500, dim=0)
    uniforms = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens, log_probs = draw_tokens(logits, uniforms, 0.8, None)
    exact = exact_log_probs(logits, 0.8)
    ends = exact.exp().cumsum(-1)
    want = torch.searchsorted(ends, uniforms.unsqueeze(1), right=True).squeeze(1)
    # float32 exponentials move the borders between tokens by about 1e-7.
    assert (tokens != want).sum() <= 2
    assert torch.allclose(log_probs, exact.gather(1, tokens.unsqueeze(1)).squeeze(1), rtol=0, atol=LOG_PROB)


@pytest.mark.parametrize("vocab, impossible", [(200, 0), (300, 0), (300, 20), (700, 300), (5000, 0), (5000, 600)])
def test_the_largest_number_below_one_draws_a_possible_token_of_any_row(vocab, impossible):
    logits = torch.cat([make_logits(3000, vocab - impossible), torch.full((3000, impossible), -INF)], dim=1)
    tokens, log_probs = draw_tokens(logits, torch.full((3000,), ALMOST_ONE[1], dtype=torch.float64), 1.0, None)
    assert tokens.max() < vocab - impossible and log_probs.isfinite().all()


def test_a_draw_on_the_border_of_two_blocks_is_a_possible_token():
    """There rounding may leave less than nothing to go into the second block, whose first tokens are impossible."""
    logits = make_logits(3000, 5 * BLOCK)
    blocks = logits.unflatten(1, (5, BLOCK))
    blocks[..., :7] = -INF
    mass = (logits - logits.amax(1, keepdim=True)).exp().double().unflatten(1, (5, BLOCK)).sum(-1)
    border = mass.cumsum(1)[:, 2] / mass.sum(1)
    tokens, log_probs = draw_tokens(logits, border, 1.0, None)
    assert (tokens % BLOCK >= 7).all() and log_probs.isfinite().all()
    assert set((tokens // BLOCK).tolist()) == {2, 3}
