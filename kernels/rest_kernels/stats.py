"""Softmax statistics of one vocabulary shard, and their merge across shards.

Statistics of a row are packed as the five columns (m, s, u, q, t), with z = (x - m) / tau:
m = max x, s = sum over v != y of e^z, u = sum z e^z, q = sum e^2z, t = x_y (-inf unless this shard owns the label).
They add up across shards after a shift, so one exchange of five numbers per token is all that tensor parallelism costs.
The label is left out of s because 1 - p_y = s / (s + e^z_y): beside the 1 of a confident label, float32 would lose it.
Differences are taken in raw logit units and scaled afterwards: scaling first loses digits when logits are large.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import compute_dtype, row_chunks, rows_per_chunk

NUM_STATS = 5


class MergedStats(NamedTuple):
    """The softmax of whole rows, each tensor [T]. p_v = exp((x_v - row_max) / tau) / exp_sum."""

    row_max: Tensor
    exp_sum: Tensor
    log_probs: Tensor
    entropy: Tensor
    collision: Tensor


def exponent_floor(dtype: torch.dtype) -> float:
    """An exponent whose exp is exactly 0. Stands in for -inf, because 0 * -inf is not a number."""
    return -746.0 if dtype == torch.float64 else -104.0


@torch.no_grad()
def shard_softmax_stats(logits: Tensor, rows: Tensor, local_labels: Tensor, temperature: float) -> Tensor:
    """Statistics (m, s, u, q, t) of the listed rows of one shard: [N, 5], float32 (float64 for float64 logits).

    logits [..., V_local]; rows int64 [N], increasing numbers of rows of the flattened leading shape; local_labels
    int64 [N], the label of each listed row counted from the shard's first column. A label outside [0, V_local) is
    owned by another shard. Rows are read once, in their own dtype; nothing is changed in place.
    """
    num_columns = logits.shape[-1]
    dtype = compute_dtype(logits.dtype)
    stats = torch.zeros(len(rows), NUM_STATS, dtype=dtype, device=logits.device)
    if num_columns == 0:
        stats[:, 0] = stats[:, 4] = -math.inf
        return stats
    owned = (local_labels >= 0) & (local_labels < num_columns)
    columns = local_labels.clamp(0, num_columns - 1).unsqueeze(-1)
    shape = (min(len(rows), rows_per_chunk(logits)), num_columns)
    exponents, exps = torch.empty(2, *shape, dtype=dtype, device=logits.device)
    for part, values in row_chunks(logits, rows):
        row_max = values.amax(-1, keepdim=True).to(dtype)
        exponent, exp = exponents[: len(values)], exps[: len(values)]
        torch.sub(values, row_max.masked_fill(row_max == -math.inf, 0.0), out=exponent)
        exponent.mul_(1 / temperature).clamp_(min=exponent_floor(dtype))
        torch.exp(exponent, out=exp)
        column = columns[part]
        label_exp = exp.gather(-1, column)
        out = stats[part]
        out[:, 0] = row_max.squeeze(-1)
        out[:, 1] = exp.scatter_(-1, column, label_exp.masked_fill(owned[part].unsqueeze(-1), 0.0)).sum(-1)
        exp.scatter_(-1, column, label_exp)
        out[:, 2] = exponent.mul_(exp).sum(-1)
        out[:, 3] = exp.square_().sum(-1)
        out[:, 4] = values.gather(-1, column).squeeze(-1)
    stats[:, 4].masked_fill_(~owned, -math.inf)
    return stats


def merge_softmax_stats(stats: Tensor, temperature: float) -> MergedStats:
    """Merge the statistics [shards, T, 5] of all shards, in shard order, into those of whole rows.

    With M = max_r m_r, d_r = (m_r - M) / tau, c_r = e^d_r, z = (max_r t_r - M) / tau and R = sum c_r s_r:
    S = R + e^z, U = sum c_r (u_r + d_r S_r) with S_r the sum of shard r, Q = sum c_r^2 q_r;
    log p_y = z - log S, entropy = log S - U / S (never negative), collision = Q / S^2.
    log S is taken as log1p(R + (e^z - 1)), so that 1 - p_y keeps its digits when it is small.
    A shard with m = -inf holds no probability and is ignored. Equal input gives equal bits, so every rank of a
    tensor-parallel group agrees on every clip decision.
    """
    shard_max, s, u, q, target = stats.unbind(-1)
    row_max = shard_max.amax(0)
    empty = shard_max == -math.inf
    shift = ((shard_max - row_max) / temperature).masked_fill(empty, 0.0).clamp(min=exponent_floor(stats.dtype))
    scale = shift.exp().masked_fill(empty, 0.0)
    label_exponent = (target.amax(0) - row_max) / temperature
    rest = (scale * s).sum(0)
    exp_sum = rest + label_exponent.exp()
    log_sum = torch.log1p(rest + torch.expm1(label_exponent))
    shard_sum = s + ((target - shard_max) / temperature).exp().masked_fill(target == -math.inf, 0.0)
    return MergedStats(
        row_max=row_max,
        exp_sum=exp_sum,
        log_probs=label_exponent - log_sum,
        entropy=log_sum - (scale * (u + shift * shard_sum)).sum(0) / exp_sum,
        collision=(scale.square() * q).sum(0) / exp_sum.square(),
    )
