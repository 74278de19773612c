"""Drawing tokens from vocabulary-parallel logits without gathering them."""

import torch
import torch.distributed as dist
from torch import Tensor

NO_TOKEN = -1


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
    scaled = logits.float() / temperature
    peak = scaled.amax(-1)
    mass = (scaled - peak.unsqueeze(1)).exp().double()
    peaks, sums = _gather(torch.stack([peak.double(), mass.sum(-1)]), tp_group)
    rank = 0 if tp_group is None else dist.get_rank(tp_group)
    top = peaks.amax(0)
    shares = torch.where(peaks == -torch.inf, 0.0, sums * (peaks - top).exp())
    total = shares.sum(0)
    before = shares.cumsum(0) - shares
    target = uniforms.double() * total
    owner = ((before <= target) & (shares > 0)).long().cumsum(0).argmax(0)
    local_target = (target - before[rank]) / (peak.double() - top).exp()
    column = torch.searchsorted(mass.cumsum(-1), local_target.unsqueeze(1), right=True).squeeze(1)
    column = torch.minimum(column, _last_nonzero(mass))
    log_prob = scaled.gather(1, column.unsqueeze(1)).squeeze(1).double() - top - total.log()
    mine = (owner == rank) & torch.isfinite(total) & (total > 0)
    token = torch.where(mine, (column + rank * logits.shape[1]).double(), float(NO_TOKEN))
    choice = torch.stack([token, torch.where(mine, log_prob, -torch.inf)])
    if tp_group is not None and dist.get_world_size(tp_group) > 1:
        dist.all_reduce(choice, op=dist.ReduceOp.MAX, group=tp_group)
    return choice[0].long(), choice[1]


def _last_nonzero(mass: Tensor) -> Tensor:
    """Highest column of each row that has any probability: rounding must not draw an impossible token."""
    return mass.shape[1] - 1 - (mass > 0).flip(-1).long().argmax(-1)


def _gather(stats: Tensor, tp_group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Peak and mass [2, b] of each shard -> two tensors [tp, b]."""
    if tp_group is None or dist.get_world_size(tp_group) == 1:
        return stats[:1], stats[1:]
    shards = [torch.empty_like(stats) for _ in range(dist.get_world_size(tp_group))]
    dist.all_gather(shards, stats, group=tp_group)
    return torch.stack(shards, dim=1).unbind(0)
