"""Softmax statistics of one vocabulary shard, in one read of the logits."""

import math

import torch
from torch import Tensor

from ..tokens import NUM_STATS, Softmax, Tokens, compute_dtype
from .compiled import row_function
from .exponent import exponent_scale, row_exponent
from .rows import Rows

# Compiled sums add columns one after another: over a whole vocabulary the entropy would be off by 1e-5. Eager sums are
# pairwise, so there a row is one block.
COMPILED_BLOCK = 256


@torch.no_grad()
def softmax_stats(logits: Tensor, tokens: Tokens, softmax: Softmax, collision: bool) -> Tensor:
    """See `backend.Backend.softmax_stats`."""
    dtype = compute_dtype(logits.dtype)
    stats = torch.zeros(tokens.labels.numel(), NUM_STATS, dtype=dtype, device=logits.device)
    stats[:, 0] = stats[:, 4] = -math.inf
    numbers = tokens.active().nonzero().squeeze(-1)
    num_columns = softmax.shard.num_columns
    if num_columns == 0 or len(numbers) == 0:
        return stats
    rows = Rows(logits[..., :num_columns], numbers)
    column = tokens.labels[numbers] - softmax.shard.start
    owned = (column >= 0) & (column < num_columns)
    column = column.clamp(0, num_columns - 1)
    target = rows.tensor[rows.index(column)]
    others = target.masked_fill(owned, -math.inf)  # what the label's column holds while the others are reduced
    scale = exponent_scale(softmax.temperature, dtype)
    found = torch.empty(len(numbers), NUM_STATS, dtype=dtype, device=logits.device)
    found[:, 4] = target.masked_fill(~owned, -math.inf)
    compute = row_function(row_stats, rows)
    width = COMPILED_BLOCK if compute.compiled else num_columns
    for part, values in rows.chunks(compute.chunk_elements, block=width):
        values[torch.arange(len(values), device=values.device), column[part]] = others[part]
        found[part, :4] = compute.run(values.unflatten(-1, (-1, width)), scale, collision)
    return stats.index_copy_(0, numbers, found)


def row_stats(blocks: Tensor, scale: Tensor, collision: bool) -> Tensor:
    """(m, s, u, q) [n, 4] of n rows that are cut into blocks of columns [n, B, W]; q is 0 unless `collision`.

    scale: see `exponent_scale`.
    """
    values = blocks.to(scale.dtype)
    row_max = values.amax((1, 2), keepdim=True)
    exponent = row_exponent(values, row_max.masked_fill(row_max == -math.inf, 0.0), scale)
    exp = exponent.exp2()
    s = _sum(exp)
    u = _sum(exponent.mul_(exp)) * math.log(2)
    q = _sum(exp.square_()) if collision else torch.zeros_like(s)
    return torch.stack((row_max.flatten(), s, u, q), -1)


def _sum(blocks: Tensor) -> Tensor:
    return blocks.sum(-1).sum(-1)
