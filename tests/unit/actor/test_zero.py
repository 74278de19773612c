"""The learning-rate schedule and AdamW's parameter groups."""

import pytest
import torch

from rest_megatron.actor.zero import learning_rate_factor, parameter_groups
from rest_megatron.config.schema import OptimConfig


@pytest.mark.parametrize("schedule, warmup, floor, want", [
    ("constant", 0, 0.0, [1, 1, 1, 1, 1, 1]),
    ("constant", 4, 0.0, [0.25, 0.5, 0.75, 1, 1, 1]),
    ("linear", 0, 0.0, [1, 0.8, 0.6, 0.4, 0.2, 0]),
    ("linear", 1, 0.2, [1, 1, 0.8, 0.6, 0.4, 0.2]),
    ("cosine", 1, 0.0, [1, 1, 0.8535533905932737, 0.5, 0.1464466094067262, 0]),
    ("cosine", 1, 0.5, [1, 1, 0.9267766952966369, 0.75, 0.5732233047033631, 0.5]),
    ("cosine", 9, 0.5, [1 / 9, 2 / 9, 3 / 9, 4 / 9, 5 / 9, 6 / 9]),
])  # fmt: skip
def test_the_factor_of_each_step(schedule, warmup, floor, want):
    optim = OptimConfig(schedule=schedule, warmup_steps=warmup, min_lr_ratio=floor)
    factor = learning_rate_factor(optim, total_steps=5)
    assert [factor(step) for step in range(6)] == pytest.approx(want, abs=1e-12)
    assert factor(1000) == pytest.approx(1 if schedule == "constant" else floor)


def test_matrices_decay_and_vectors_do_not():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Embedding(5, 4))
    decayed, others = parameter_groups(module, weight_decay=0.3)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3), (5, 4)]
    assert [tuple(p.shape) for p in others["params"]] == [(4,), (4,), (4,)]
