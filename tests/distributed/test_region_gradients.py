"""Signal and noise of each region's gradient are those of Hugging Face's gradients, on every layout."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from rest_megatron.method.regions import Region
from tests.distributed.cases import Layout
from tests.distributed.region_cases import EPS, measured_after_an_update, measured_of_some, regions_of
from tests.tiny import oracle

GROUPS = tuple(i // 4 for i in range(16))
COUNT = 4
LAYOUTS = [
    Layout(max_tokens=2000),
    Layout(tp=2),
    Layout(pp=2, level="hidden"),
    Layout(dp=2),
    Layout(tp=2, pp=2, sp=True, max_tokens=32),
]


def flat(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@pytest.fixture(scope="module")
def exact(tiny_model, answers):
    """tied -> gradients [groups, regions, parameters] of Hugging Face in float64, and the whole one."""
    regions = regions_of(answers, GROUPS)

    @cache
    def gradients(tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model, parts = tiny_model(tied=tied), []
        for region in Region:
            own = replace(answers, loss_weights=answers.loss_weights.masked_fill(regions != region, 0.0))
            picked = ([i for i, g in enumerate(GROUPS) if g == group] for group in range(COUNT))
            parts.append(torch.stack([COUNT * flat(oracle(model, own.select(rows)).gradients) for rows in picked]))
        return torch.stack(parts, dim=1), flat(oracle(model, answers).gradients)

    return gradients


def expected(gradients: torch.Tensor, metric: torch.Tensor) -> dict[str, torch.Tensor]:
    """The definitions written out; and the scale of each product, of which rounding is a share."""
    first, second = gradients[: COUNT // 2], gradients[COUNT // 2 :]
    means = first.mean(0)
    terms = torch.stack([(g @ (metric * means.sum(0)) + means @ (metric * g.sum(0))) / 2 for g in second])
    cross = torch.stack([(g * metric * means).sum(-1) for g in second])
    squares = (gradients.square() * metric).sum(-1)
    scale = squares.mean(0).sqrt() * (gradients.sum(1).square() * metric).sum(-1).mean().sqrt()
    return {
        "signal": (terms.mean(0), scale),
        "noise": (squares.mean(0) - cross.mean(0), squares.mean(0)),
        "error": (terms.std(0) * math.sqrt(2 / len(second)), scale),
    }


@pytest.mark.parametrize(
    "layout, adam, tied",
    [*((layout, True, False) for layout in LAYOUTS), (LAYOUTS[0], False, False), (LAYOUTS[-1], False, True)],
    ids=str,
)
def test_signal_and_noise_are_those_of_hugging_faces_gradients(pool, tiny_model, answers, exact, layout, adam, tied):
    gradients, whole = exact(tied)
    least = 0.1 * whole[whole != 0].abs().mean()  # of Adam's root after one update, which is |g|
    assert least > EPS
    metric = 1 / (whole.abs() + least) if adam else torch.ones_like(whole)
    model = tiny_model(tied=tied)
    for result in pool.run(measured_after_an_update, layout.world_size, model, layout, answers, GROUPS, adam):
        assert result["unmeasured"] and result["untouched"]
        assert 3 < result["cost"] <= 4
        for name, (value, scale) in expected(gradients, metric).items():
            found = torch.tensor(getattr(result["regions"], name), dtype=torch.float64)
            assert ((found - value).abs() / scale).max() < 1e-5, name


def test_without_two_groups_with_a_gradient_in_each_half_nothing_is_measured(pool, tiny_model, answers):
    groups, layout = tuple(i // 2 for i in range(16)), Layout(dp=2, max_tokens=2000)
    taught = [{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 1, 2, 7}, {0, 3, 4, 7}]
    for found in pool.run(measured_of_some, 2, tiny_model(), layout, answers, groups, taught):
        assert found == [False, False, False, True]
