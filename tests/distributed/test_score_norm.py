"""The score norms of single tokens are those of Hugging Face's own backward passes, on every layout."""

from functools import cache

import pytest
import torch

from tests.distributed.cases import Layout
from tests.distributed.score_norm_cases import TEMPERATURE, normed
from tests.tiny import load, response_logits

LAYOUTS = [
    Layout(),
    Layout(tp=2),
    Layout(pp=2, level="hidden"),
    Layout(tp=2, pp=2, sp=True),
    Layout(dp=2),
]


@pytest.fixture(scope="module")
def exact(tiny_model, answers):
    """tied -> ([answers, 2] squared norm of grad log p of the last token, whole and in the ends; p of the first)."""

    @cache
    def found(tied: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model, norms = load(tiny_model(tied=tied), torch.float64), []
        for trajectory in answers.trajectories:
            model.zero_grad()
            logits = response_logits(model, [trajectory])[-1] / TEMPERATURE
            logits.log_softmax(-1)[trajectory.response_ids[-1]].backward()
            squares = {name: float(p.grad.square().sum()) for name, p in model.named_parameters()}
            ends = sum(square for name, square in squares.items() if "embed" in name or "lm_head" in name)
            norms.append((sum(squares.values()), ends))
        p = (response_logits(model, answers.trajectories[:1]) / TEMPERATURE).softmax(-1).detach()
        return torch.tensor(norms), p

    return found


@pytest.mark.parametrize(
    "layout, tied", [*((layout, False) for layout in LAYOUTS), (LAYOUTS[0], True), (LAYOUTS[3], True)], ids=str
)
def test_norms_and_distributions_are_hugging_faces(pool, tiny_model, answers, exact, layout, tied):
    norms, p = exact(tied)
    results = pool.run(normed, layout.world_size, tiny_model(tied=tied), layout, answers.trajectories)
    seen = {}
    for result in results:
        assert result["untouched"]
        seen |= result["norms"]
        if result["p"] is not None:
            torch.testing.assert_close(result["p"], p, rtol=1e-5, atol=1e-9)
    found = torch.tensor([seen[i] for i in range(len(answers.trajectories))], dtype=torch.float64)
    torch.testing.assert_close(found, norms.double(), rtol=1e-5, atol=0.0)
