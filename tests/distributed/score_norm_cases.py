"""What the gloo workers run to test the score norms of single tokens."""

from dataclasses import replace
from pathlib import Path

import torch

from rest_megatron.actor.score_norm import distributions, score_norms
from rest_megatron.distributed.launch import Launch
from rest_megatron.types import Trajectory
from tests.distributed.cases import Layout, make_config, named, start

TEMPERATURE = 0.7


def normed(launch: Launch, model: Path, layout: Layout, trajectories: list[Trajectory]) -> dict:
    """The norm of each trajectory's last token, dealt over data-parallel ranks; the distributions of the first one."""
    config = make_config(model, layout)
    actor, parallel = start(launch, replace(config, rollout=replace(config.rollout, temperature=TEMPERATURE)))
    before = named(actor, parallel, lambda p: p.data.clone())
    mine = list(range(parallel.dp_rank, len(trajectories), parallel.dp_size))
    p = distributions(actor, trajectories[0] if parallel.dp_rank == 0 else None)
    norms = score_norms(actor, [trajectories[i] for i in mine])
    after = named(actor, parallel, lambda p: p.data.clone())
    return {
        "norms": dict(zip(mine, norms, strict=True)),
        "p": p if parallel.dp_rank == 0 else None,
        "untouched": all(torch.equal(before[name], after[name]) for name in before),
    }
