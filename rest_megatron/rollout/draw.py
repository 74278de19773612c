"""Drawing tokens from vocabulary-parallel logits without gathering them."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

NO_TOKEN = -1
# Columns whose probabilities exist at once on a CPU, few enough for its cache, and those that are summed up first.
PART, BLOCK = 4096, 256


def draw_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float, tp_group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: [b, vocab / TP], this rank's shard of the vocabulary, any float dtype.
        uniforms: [b] in [0, 1), the same on all ranks. One number decides a token, so a seed gives the same draws on
            every layout, up to rounding where a draw falls on the border between two tokens.
        temperature: divides the logits.
        tp_group: ranks that hold the other shards, equal in size, in rank order; None: the shard is all.

    Returns:
        tokens [b] int64, global ids, and their log-probs [b] float64, equal on all ranks. A row whose logits hold no
        finite distribution gives NO_TOKEN.
    """
    peak = logits.amax(-1).float() / temperature
    parts = logits.split(PART, dim=1) if logits.device.type == "cpu" else [logits]
    blocks = torch.cat([_block_masses(part, temperature, peak) for part in parts], dim=1)
    peaks, sums = _gather(torch.stack([peak.double(), blocks.sum(-1)]), tp_group)
    rank = 0 if tp_group is None else dist.get_rank(tp_group)
    top = peaks.amax(0)
    shares = torch.where(peaks == -torch.inf, 0.0, sums * (peaks - top).exp())
    total = shares.sum(0)
    before = shares.cumsum(0) - shares
    target = uniforms.double() * total
    owner = ((before <= target) & (shares > 0)).long().cumsum(0).argmax(0)
    local_target = (target - before[rank]) / (peak.double() - top).exp()
    block, left = _find(blocks, local_target)
    columns = (block * BLOCK).unsqueeze(1) + torch.arange(BLOCK, device=logits.device)
    outside = columns >= logits.shape[1]
    chosen = logits.gather(1, columns.clamp(max=logits.shape[1] - 1)).masked_fill(outside, -torch.inf)
    place, _ = _find(_mass(chosen, temperature, peak), left)
    column = block * BLOCK + place
    log_prob = (chosen.gather(1, place.unsqueeze(1)).squeeze(1).float() / temperature).double() - top - total.log()
    mine = (owner == rank) & torch.isfinite(total) & (total > 0)
    token = torch.where(mine, (column + rank * logits.shape[1]).double(), float(NO_TOKEN))
    choice = torch.stack([token, torch.where(mine, log_prob, -torch.inf)])
    if tp_group is not None and dist.get_world_size(tp_group) > 1:
        dist.all_reduce(choice, op=dist.ReduceOp.MAX, group=tp_group)
    return choice[0].long(), choice[1]


def _mass(logits: Tensor, temperature: float, peak: Tensor) -> Tensor:
    """float64 [b, n]: the probabilities of some columns, times the same factor for all columns of a row."""
    return (logits.float() / temperature).sub_(peak.unsqueeze(1)).exp_().double()


def _block_masses(logits: Tensor, temperature: float, peak: Tensor) -> Tensor:
    """float64 [b, n / BLOCK]: the sum of each BLOCK of columns of `_mass`; the last may be narrower."""
    mass = F.pad(_mass(logits, temperature, peak), (0, -logits.shape[1] % BLOCK))
    return mass.unflatten(1, (-1, BLOCK)).sum(-1)


def _find(mass: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The column [b] of mass [b, n] in which the cumulative sum passes target [b], and how far into it the target is.

    A target that rounding put at the end, or beyond it, is just before it: an impossible token is never drawn.
    """
    ends = mass.cumsum(-1)
    target = torch.minimum(target, torch.nextafter(ends[:, -1], torch.zeros_like(target))).unsqueeze(1)
    column = torch.searchsorted(ends, target, right=True).clamp(max=mass.shape[1] - 1)
    # Less than zero where rounding puts the column's begin beyond the end of the one before.
    return column.squeeze(1), (target - (ends - mass).gather(1, column)).squeeze(1).clamp(min=0)


def _gather(stats: Tensor, tp_group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Peak and mass [2, b] of each shard -> two tensors [tp, b]."""
    if tp_group is None or dist.get_world_size(tp_group) == 1:
        return stats[:1], stats[1:]
    shards = [torch.empty_like(stats) for _ in range(dist.get_world_size(tp_group))]
    dist.all_gather(shards, stats, group=tp_group)
    peaks, sums = torch.stack(shards, dim=1)
    return peaks, sums
