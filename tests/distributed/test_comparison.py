"""Gradients of two weightings are compared as Hugging Face's are, on every layout, within float32's error of them."""

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from tests.distributed.cases import Layout, merged
from tests.distributed.method_cases import measured
from tests.distributed.noise import BACKWARD, MULTIPLE
from tests.tiny import load, policy_loss, response_logits

LAYOUTS = [
    Layout(max_tokens=2000),
    Layout(tp=2, pp=2, sp=True, max_tokens=32),
    Layout(pp=2, dp=2, level="hidden"),
    Layout(tp=2, dp=2, sp=True, level="hidden", max_tokens=2000),
    Layout(tp=2, pp=2, vpp=2),
]
GROUPS = tuple(i // 4 for i in range(16))
COUNT = 4
ARMS = ("weights", "uniform")
NUMBERS = ("variance", "standard_error", "mean_norm_squared", "gain", "gain_error")


@dataclass(frozen=True)
class Terms:
    """What a comparison is made of, float64."""

    products: Tensor
    """[arm, arm, group, group]: of the groups' gradients."""
    gains: Tensor
    """[arm, groups of the second half]: by a step along the first half's Adam direction."""
    rewards: Tensor
    """[groups of the second half]: the norm of the reward's gradient."""

    def numbers(self) -> dict[str, float]:
        """As they are written out in `actor.comparison` and `actor.variance`."""
        means = (self.products.sum((2, 3)) - self.products.diagonal(dim1=2, dim2=3).sum(2)) / (COUNT * (COUNT - 1))
        found = {}
        for arm, name in enumerate(ARMS):
            squares, gains = self.products[arm, arm].diagonal(), self.gains[arm]
            mean = means[arm, arm]
            values = (squares.mean() - mean, squares.std() / COUNT**0.5, mean, gains.mean(), gains.std() / 2**0.5)
            found |= {f"{name}/{key}": float(value) for key, value in zip(NUMBERS, values, strict=True)}
        difference, square = self.gains[0] - self.gains[1], float(means[0, 0] * means[1, 1])
        lost = min(means[0, 0], means[1, 1]) <= 0
        return found | {
            "together/cosine": math.nan if lost else float(means[0, 1]) / math.sqrt(square),
            "together/gain_difference": float(difference.mean()),
            "together/gain_difference_error": float(difference.std()) / 2**0.5,
        }


def bars(single: Terms, exact: Terms) -> dict[str, float]:
    """What each number may be off by, from how far float32's terms are off on this machine.

    A mean of terms is off by no more than the worst of them. Of the terms, MULTIPLE times Hugging Face's largest error
    counts, and no less than both gradients' BACKWARD: of a square, as a share of itself; of a gain, whose direction has
    entries of order 1, as a share of the reward's norm. Products of two groups are many, and need no such floor.
    """
    wrong = (single.products - exact.products).abs()
    squares, own = (x.diagonal(dim1=2, dim2=3)[[0, 1], [0, 1]] for x in (exact.products, wrong))
    square = MULTIPLE * (own / squares).amax(1).clamp(min=2 * BACKWARD) * squares.amax(1)
    product = MULTIPLE * wrong.masked_fill(torch.eye(COUNT, dtype=torch.bool), 0.0).amax((2, 3))
    gain = MULTIPLE * max(float((single.gains - exact.gains).abs().max()), 2 * BACKWARD * float(exact.rewards.max()))
    found = {}
    for arm, name in enumerate(ARMS):
        mean = product[arm, arm]
        values = (square[arm] + mean, square[arm], mean, gain, gain)
        found |= {f"{name}/{key}": float(value) for key, value in zip(NUMBERS, values, strict=True)}
    numbers = exact.numbers()
    ours, uniform = (numbers[f"{name}/mean_norm_squared"] for name in ARMS)
    # Of a / sqrt(b c), to first order.
    shares = (float(product[0, 0]) / abs(ours) + float(product[1, 1]) / abs(uniform)) / 2
    cosine = float(product[0, 1]) / math.sqrt(abs(ours * uniform)) + abs(numbers["together/cosine"]) * shares
    differences = dict.fromkeys(("together/gain_difference", "together/gain_difference_error"), 2 * gain)
    return found | {"together/cosine": cosine} | differences


def flat_gradients(model_path, answers, loss, dtype) -> Tensor:
    """[groups, parameters]: the gradient of each group's loss, from Hugging Face."""
    rows = []
    for group in range(COUNT):
        own = answers.select([i for i, g in enumerate(GROUPS) if g == group])
        model = load(model_path, dtype)
        loss(response_logits(model, own.trajectories), own).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        rows.append(torch.cat([gradients[name].flatten() for name in sorted(gradients)]))
    return torch.stack(rows).double()


def minus_reward(logits, answers) -> Tensor:
    """Of each token: its advantage times its log-prob."""
    _, log_probs, _ = policy_loss(logits, answers)
    return -(answers.advantages.to(log_probs.dtype) * log_probs).sum()


def terms(model_path, answers, dtype) -> Terms:
    """Of the answers' weights and of equal ones, from Hugging Face's gradients in this precision."""
    equal = replace(answers, loss_weights=torch.full_like(answers.loss_weights, 1 / len(answers.old_log_probs)))
    arms = [COUNT * flat_gradients(model_path, own, lambda *x: policy_loss(*x)[0], dtype) for own in (answers, equal)]
    rewards = flat_gradients(model_path, answers, minus_reward, dtype)[COUNT // 2 :]
    rows = torch.stack(arms)
    first = rows[:, : COUNT // 2]
    mean = first.mean(1)
    second = mean.square() + (first.square().mean(1) - mean.square()) / (COUNT // 2)
    direction = mean / second.sqrt().clamp(min=1e-300)
    products = torch.einsum("agp,bhp->abgh", rows, rows)
    return Terms(products, direction @ rewards.T, rewards.norm(dim=1))


@pytest.fixture(scope="module")
def expected(tiny_model, answers):
    """tied -> the numbers from Hugging Face's float64, and their bars."""

    @cache
    def found(tied: bool) -> tuple[dict[str, float], dict[str, float]]:
        exact, single = (terms(tiny_model(tied=tied), answers, dtype) for dtype in (torch.float64, torch.float32))
        return exact.numbers(), bars(single, exact)

    return found


@pytest.mark.parametrize(
    "tied, layout", [*((False, layout) for layout in LAYOUTS), (True, Layout(tp=2, pp=2, sp=True))], ids=str
)
def test_gradients_are_compared_as_hugging_faces(pool, tiny_model, answers, expected, within, tied, layout):
    wanted, allowed = expected(tied)
    for result in pool.run(measured, layout.world_size, tiny_model(tied=tied), layout, answers, GROUPS, True):
        found = result["comparison"]
        errors = {name: abs(found[name.split("/")[0]][name.split("/")[1]] - value) for name, value in wanted.items()}
        if math.isnan(wanted["together/cosine"]):
            assert math.isnan(errors.pop("together/cosine"))
        within(errors, allowed)
        for name in ARMS:
            variance, mean = found[name]["variance"], found[name]["mean_norm_squared"]
            assert found[name]["groups"] == COUNT
            assert found[name]["relative"] == (variance / mean if mean > 0 else math.inf)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, pp=2, sp=True)], ids=str)
def test_measuring_the_variance_leaves_the_step_as_it_was(pool, tiny_model, answers, layout, tied):
    run = [
        pool.run(measured, layout.world_size, tiny_model(tied=tied), layout, answers, GROUPS, probe)
        for probe in (False, True)
    ]
    assert run[0][0]["metrics"] == run[1][0]["metrics"]
    before, after = (merged(results, "weights") for results in run)
    assert all(torch.equal(before[name], after[name]) for name in before)
