"""Not-a-number and infinity in a row that counts are never hidden; -inf is a column without probability."""

import math
from unittest import mock

import pytest
import torch

from rest_kernels import reference
from tests.kernels.oracle import BF16, F32, assert_values, exact_values, gradient, make_logits

NAN, INF = math.nan, math.inf
# Which of 9000 columns are poisoned; the label is column 4099.
PLACES = {
    "the first": slice(0, 1),
    "one": slice(5003, 5004),
    "the last": slice(8999, 9000),
    "the label": slice(4099, 4100),
    "beside the label": slice(4100, 4101),
    "four of a thread": slice(40, 44),
    "eight of a thread": slice(40, 48),
    "eight of the last block": slice(8992, 9000),
    "a whole block": slice(0, 4096),
    "every second": slice(0, 9000, 2),
    "all but the label": [*range(4099), *range(4100, 9000)],
    "all": slice(None),
}


def poisoned(dtype, place, value):
    """Three rows, the one in the middle poisoned."""
    logits, _ = make_logits(3, 9000, dtype)
    logits[1, PLACES[place]] = value
    return logits, torch.full((3,), 4099)


def loss_of(target, logits, labels, **options):
    return target.ppo_loss(
        logits,
        labels,
        old_log_probs=torch.full((len(labels),), -9.0),
        advantages=torch.tensor([1.0, -1.0, 2.0])[: len(labels)],
        loss_weights=torch.full((len(labels),), 0.3),
        **options,
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_poisoned_row_gives_not_a_number_and_no_other_row_does(target, place, value, dtype):
    logits, labels = poisoned(dtype, place, value)
    result = target.logprob_entropy(logits, labels, return_collision=True)
    assert result.log_probs[1].isnan() and result.entropy[1].isnan()
    clean = torch.tensor([0, 2])
    assert_values(type(result)(*(part[clean] for part in result)), exact_values(logits[clean], labels[clean]))


@pytest.mark.parametrize("place", ["one", "the label", "eight of a thread", "all"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_loss_of_a_poisoned_row_is_not_a_number(target, place, value):
    logits, labels = poisoned(F32, place, value)
    assert loss_of(target, logits, labels).loss.isnan()
    weights = torch.tensor([0.3, 0.0, 0.3])
    vectors = {"old_log_probs": torch.full((3,), -9.0), "advantages": torch.ones(3), "loss_weights": weights}
    assert target.ppo_loss(logits, labels, **vectors).loss.isfinite()


@pytest.mark.parametrize("name", ["old_log_probs", "advantages", "loss_weights", "ref_log_probs"])
def test_a_poisoned_vector_is_not_hidden(target, name):
    logits, labels = make_logits(3, 37)
    vectors = {key: torch.ones(3) for key in ("old_log_probs", "advantages", "loss_weights", "ref_log_probs")}
    vectors[name][1] = NAN
    assert target.ppo_loss(logits, labels, **vectors, kl_coef=0.1).loss.isnan()


@pytest.mark.parametrize("place", ["one", "the label", "eight of a thread"])
def test_the_gradient_of_a_poisoned_row_is_not_a_number(target, place):
    logits, labels = poisoned(F32, place, NAN)
    grads = (torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    grad = gradient(target, logits, labels, grads)
    assert grad[1].isnan().all()
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_masked_label_has_log_prob_minus_infinity_and_a_finite_gradient(target, dtype):
    logits = torch.tensor([[0.0, -INF, 1.0]], dtype=dtype)
    labels, h = torch.tensor([1]), torch.tensor([0.8], dtype=torch.float64)
    result = target.logprob_entropy(logits, labels)
    assert result.log_probs.item() == -INF
    assert result.entropy.item() == pytest.approx(reference.entropy(logits.double()).item())
    # d log p_y / dx_v = 1(v = y) - p_v, by hand: p = (1, 0, e) / (1 + e).
    p = torch.tensor([1.0, 0.0, math.e], dtype=torch.float64) / (1 + math.e)
    expected = torch.tensor([0.0, 1.0, 0.0]) - p
    bonus = -h * p * (p.clamp(min=1e-300).log() + result.entropy.double())
    grad = gradient(target, logits, labels, (torch.ones(1, dtype=torch.float64), h))[0]
    assert torch.allclose(grad.double(), expected + bonus, rtol=2 * target.unit(dtype), atol=1e-6)


def test_a_masked_label_holds_the_ratio_and_its_gradient_is_zero(target):
    logits = torch.tensor([[0.0, -INF, 1.0]]).requires_grad_()
    labels = torch.tensor([1])
    result = loss_of(target, logits, labels)
    (grad,) = torch.autograd.grad(result.loss, logits)
    # delta = -inf is held at -20: A = 1, so the loss is -0.3 e^-20.
    assert result.loss.item() == pytest.approx(-0.3 * math.exp(-20))
    assert (grad == 0).all()


@pytest.mark.parametrize("vocab", [3, 5000])
def test_a_row_without_any_probability_is_not_a_number(target, vocab):
    logits = torch.full((1, vocab), -INF)
    assert target.logprob_entropy(logits, torch.tensor([0])).log_probs.isnan().all()


def test_a_label_outside_the_vocabulary_poisons_the_gradient_too(target):
    """As on a GPU, where no check stops it: an optimizer must not step on the rest of the row."""
    logits, labels = make_logits(3, 300)
    leaf = target.put(logits).requires_grad_()
    with mock.patch("rest_kernels.arguments.check_labels"):
        result = target.logprob_entropy(leaf, labels.index_fill(0, torch.tensor([1]), 300))
    (grad,) = torch.autograd.grad(result.log_probs.sum(), leaf)
    assert result.log_probs.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(-1).tolist() == [False, True, False] and grad[::2].isfinite().all()
