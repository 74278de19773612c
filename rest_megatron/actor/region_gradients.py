"""What each region has in the gradients of a step's groups: its signal and its noise, on any layout.

Of group i let g_i be the gradient of its loss with uniform token weights, g_ir the part of region r, so that
sum_r g_ir = g_i, and <a, b> = sum_j d_j a_j b_j, with d = 1 or, in the optimizer's metric, d_j = 1 / (sqrt(v_j) + eps)
of Adam's second moment (`_adam_metric`). The first half of the groups gives the means m_r over it, and m = sum_r m_r.
The others give

    signal  s_r = mean_i (<g_ir, m> + <m_r, g_i>) / 2            for <E g_r, E g>
    noise   v_r = mean_i |g_ir|^2 over all groups - mean_i <m_r, g_ir>     for E|g_r|^2 - |E g_r|^2

which are free of bias, as the halves are independent. The spread of s_r's terms tells how far the second half can be
off; the first can be as far, so their standard error is multiplied by sqrt(2). Costs at most four passes over the
answers (one for each region that a group's gradient has), four float32 copies of this rank's gradient, and one of
Adam's metric.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.group_gradients import group_gradient, inner_products, of_group, zero_gradient
from rest_megatron.actor.learning import has_gradient
from rest_megatron.actor.optimizer_state import adam_step, link_states, whole_on_all
from rest_megatron.method.measured import MeasuredRegions
from rest_megatron.method.regions import Region
from rest_megatron.types import Batch, PolicyStreams

FEWEST_GROUPS = 2
"""With a gradient in each half: a half without any makes every product 0, which would pass for a sure measurement."""
LEAST_ROOT = 0.1
"""Of the mean root of Adam's second moment, see `_adam_metric`."""


class Measurement(NamedTuple):
    """See above."""

    regions: MeasuredRegions
    cost: float
    """Tokens that were run for it, over those of one update."""


def measure_regions(actor: Actor, batch: Batch, streams: PolicyStreams, adam_metric: bool) -> Measurement | None:
    """Measure them for the policy loss. Collective; weights, optimizer and schedule stay as they are.

    streams: of the batch, with uniform token weights, normalised as for one update with all of it. None where fewer
    than FEWEST_GROUPS groups of a half have a gradient, and in Adam's metric before the first update.
    """
    present = _present(actor, batch, streams)
    metric = _adam_metric(actor) if adam_metric else None
    half, taught = batch.num_groups // 2, present.any(dim=1)
    fewest = min(int(taught[:half].sum()), int(taught[half:].sum()))
    if fewest < FEWEST_GROUPS or (adam_metric and metric is None):
        return None
    means = [zero_gradient(actor) for _ in Region]
    squares = torch.zeros(batch.num_groups, len(Region), dtype=torch.float64)
    products = torch.zeros(batch.num_groups - half, len(Region), len(Region), dtype=torch.float64)
    for group in range(batch.num_groups):
        for region in present[group].nonzero().flatten().tolist():
            gradient = _region_gradient(actor, batch, streams, group, region)
            others = [gradient] if group < half else [gradient, *means]
            found = inner_products(actor, gradient, others, metric)
            squares[group, region] = found[0]
            if group < half:
                means[region] = [a.add_(b, alpha=1.0 / half) for a, b in zip(means[region], gradient, strict=True)]
            else:
                products[group - half, :, region] = found[1:]  # <m_row, g_column>
    return Measurement(_estimate(squares, products), _cost(actor, batch, present))


def _region_gradient(actor: Actor, batch: Batch, streams: PolicyStreams, group: int, region: int) -> list[Tensor]:
    """g_ir: the loss weights hold a factor of 1 / number of groups, which is taken out."""
    own = streams.loss_weights.masked_fill(batch.regions != region, 0.0) * batch.num_groups
    part = streams._replace(loss_weights=own)
    return group_gradient(actor, *of_group(batch.trajectories, batch.group_index, part, group))


def _present(actor: Actor, batch: Batch, streams: PolicyStreams) -> Tensor:
    """bool [groups, 4], on the CPU: which regions of which groups have a gradient, on any rank. Collective."""
    groups = torch.tensor(batch.group_index, dtype=torch.int64, device=batch.regions.device)[batch.sequence_index]
    counts = torch.zeros(batch.num_groups * len(Region), dtype=torch.float64, device=batch.regions.device)
    counts.index_add_(
        0, groups * len(Region) + batch.regions, has_gradient(streams, actor.config.algorithm.regularised).double()
    )
    dist.all_reduce(counts, group=actor.parallel.dp_group)
    return (counts > 0).view(batch.num_groups, len(Region)).cpu()


def _cost(actor: Actor, batch: Batch, present: Tensor) -> float:
    """Tokens of all passes over the tokens of all answers. Collective."""
    lengths = torch.zeros(batch.num_groups, dtype=torch.float64, device=batch.regions.device)
    for group, trajectory in zip(batch.group_index, batch.trajectories, strict=True):
        lengths[group] += trajectory.length
    dist.all_reduce(lengths, group=actor.parallel.dp_group)
    return float((lengths.cpu() * present.sum(dim=1)).sum() / lengths.sum().cpu())


def _estimate(squares: Tensor, products: Tensor) -> MeasuredRegions:
    """squares: |g_ir|^2, [groups, 4]; products: <m_q, g_ir>, [groups of the second half, 4 (q), 4 (r)]."""
    terms = (products.sum(dim=1) + products.sum(dim=2)) / 2
    own = products.diagonal(dim1=1, dim2=2)
    noise = (squares.mean(dim=0) - own.mean(dim=0)).where(squares.sum(dim=0) > 0, 0.0)
    error = terms.std(dim=0, correction=1) * math.sqrt(2.0 / len(terms))
    return MeasuredRegions(*(tuple(values.tolist()) for values in (terms.mean(dim=0), noise, error)))


def _adam_metric(actor: Actor) -> list[Tensor] | None:
    """1 / (sqrt(second moment) + eps), with Adam's correction of its bias, on every rank; None before an update.

    eps is at least a tenth of the mean root over the model's entries that have a moment: an entry that the run has
    hardly moved, such as the embedding of a rare token, would else outweigh all others, where Adam's own step is
    bounded by the moment that the entry gets with it.
    """
    optimizer = actor.zero.optimizer
    link_states(optimizer)
    steps, optim = adam_step(optimizer), actor.config.optim
    if steps == 0:
        return None
    correction = 1.0 - optim.betas[1] ** steps
    moments = (whole_on_all(p, "exp_avg_sq", actor.parallel.dp_group) for p in actor.policy.parameters())
    roots = [moment.div_(correction).sqrt_() for moment in moments]
    moved = [(root > 0).float() for root in roots]
    total, count = inner_products(actor, moved, [roots, moved]).tolist()
    eps = max(optim.eps, LEAST_ROOT * total / max(count, 1.0))
    return [root.add_(eps).reciprocal_() for root in roots]
