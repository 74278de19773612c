"""The supervised step against Hugging Face in float64."""

from dataclasses import replace

import pytest
import torch

from tests.distributed.cases import Layout, merged, supervised_gradients
from tests.distributed.noise import gradient_error
from tests.tiny import oracle

LAYOUTS = [
    (False, Layout()),
    (True, Layout(tp=2, pp=2, sp=True, max_tokens=32)),
    (False, Layout(level="hidden")),
    (True, Layout(tp=2, dp=2, sp=True, level="hidden")),
]


@pytest.mark.parametrize(
    "tied, layout", LAYOUTS, ids=[f"{'tied' if t else 'untied'}-{layout}" for t, layout in LAYOUTS]
)
def test_every_gradient_is_that_of_the_mean_negative_log_likelihood(
    pool, tiny_model, answers, bars, within, tied, layout
):
    path = tiny_model(tied=tied)
    log_probs = oracle(path, answers).log_probs
    # At a ratio of 1 and an advantage of 1 the policy loss has the likelihood's gradient.
    ones = torch.ones_like(answers.advantages)
    likelihood = replace(answers, old_log_probs=log_probs, advantages=ones, loss_weights=ones / len(ones))
    want = oracle(path, likelihood).gradients
    gradients = merged(pool.run(supervised_gradients, layout.world_size, path, layout, answers), "gradients")
    within({"gradient": gradient_error(gradients, want)}, bars(tied=tied))
