"""What the gloo workers run to test the measurement of each region's gradient."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rest_megatron.actor.region_gradients import measure_regions
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.method.regions import Region
from rest_megatron.types import Batch
from tests.distributed.cases import Layout, make_config, named, share, start
from tests.tiny import Answers

EPS = 1e-9  # of Adam: far below the least root that the measurement takes


def regions_of(answers: Answers, groups: Sequence[int]) -> torch.Tensor:
    """Some region for each target token; the last group has no tool names."""
    lengths = torch.tensor([t.num_targets for t in answers.trajectories])
    regions = torch.cat([torch.arange(int(length)) % len(Region) for length in lengths])
    last = torch.tensor(groups).repeat_interleave(lengths) == max(groups)
    return torch.where(last & (regions == Region.TOOL_NAME), int(Region.COT), regions)


def make_batch(
    answers: Answers, ours: Answers, mine: Sequence[int], groups: Sequence[int], parallel: Parallel
) -> Batch:
    """This rank's answers, whose numbers are `mine`."""
    lengths = [t.num_targets for t in ours.trajectories]
    parts = regions_of(answers, groups).split([t.num_targets for t in answers.trajectories])
    return Batch(
        trajectories=ours.trajectories,
        sample_index=mine,
        group_index=[groups[i] for i in mine],
        num_groups=max(groups) + 1,
        advantages=ours.advantages,
        regions=torch.cat([parts[i] for i in mine]).to(parallel.device),
        sequence_index=torch.arange(len(mine)).repeat_interleave(torch.tensor(lengths)).to(parallel.device),
        rollout_log_probs=ours.old_log_probs,
        mini_batches=[],
    )


def measured_after_an_update(
    launch: Launch, model: Path, layout: Layout, answers: Answers, groups: Sequence[int], adam: bool
) -> dict:
    """The measurement after an update that only gives Adam its second moment; and whether it changed anything."""
    actor, parallel = start(launch, make_config(model, layout, lr=1e-30, weight_decay=0.0, eps=EPS, clip_grad=0.0))
    ours, mine = share(answers, parallel)
    batch = make_batch(answers, ours, mine, groups, parallel)
    before_any_update = measure_regions(actor, batch, ours.streams, adam_metric=True)
    actor.update(*ours)
    before = named(actor, parallel, lambda p: p.data.clone())
    found = measure_regions(actor, batch, ours.streams, adam)
    after = named(actor, parallel, lambda p: p.data.clone())
    return {
        "regions": found.regions,
        "cost": found.cost,
        "unmeasured": before_any_update is None,
        "untouched": all(torch.equal(before[name], after[name]) for name in before),
    }


def measured_of_some(
    launch: Launch, model: Path, layout: Layout, answers: Answers, groups: Sequence[int], taught: Sequence[set[int]]
) -> list[bool]:
    """For each set of groups that alone have advantages: whether anything is measured."""
    actor, parallel = start(launch, make_config(model, layout))
    ours, mine = share(answers, parallel)
    batch = make_batch(answers, ours, mine, groups, parallel)
    own = torch.tensor([groups[i] for i in mine], device=parallel.device)[batch.sequence_index].tolist()
    found = []
    for chosen in taught:
        kept = torch.tensor([group in chosen for group in own], device=parallel.device)
        streams = ours.streams._replace(advantages=ours.advantages * kept)
        found.append(measure_regions(actor, batch, streams, adam_metric=False) is not None)
    return found
