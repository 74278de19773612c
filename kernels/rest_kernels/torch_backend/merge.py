"""The shards' statistics of each token merged into the softmax of its whole row."""

import math

import torch
from torch import Tensor

from ..tokens import MergedStats, Softmax, Tokens
from .exponent import exponent_floor


@torch.no_grad()
def merge_stats(stats: Tensor, tokens: Tokens, softmax: Softmax) -> MergedStats:
    """See `backend.Backend.merge_stats`. A label outside the vocabulary makes the row and its gradient not-a-number."""
    merged = merge_softmax_stats(stats, softmax.temperature)
    unknown = (tokens.labels < 0) | (tokens.labels >= softmax.shard.vocab_size)
    inactive = ~tokens.active()
    row_max, exp_sum, rest, *results = (x.masked_fill(unknown, math.nan) for x in merged if x is not None)
    log_probs, entropy, collision = (x.masked_fill(inactive, 0.0) for x in results)
    return MergedStats(row_max, exp_sum, rest, log_probs, entropy, collision)


def merge_softmax_stats(stats: Tensor, temperature: float) -> MergedStats:
    """Merge the statistics [shards, T, 5] of all shards, in shard order, into those of whole rows, every one active.

    The columns (m, s, u, q, t) leave the label out (see `reference.shard_stats`); it joins here as a shard of one
    column. With M the largest m_r and t, d_r = (m_r - M) / tau, c_r = e^d_r, z = (t - M) / tau, R = sum c_r s_r:
    S = R + e^z, U = sum c_r (u_r + d_r s_r) + z e^z, Q = sum c_r^2 q_r + e^2z;
    log p_y = z - log S, entropy = log S - U / S (never negative), collision = Q / S^2.
    Where the label is the largest, z = 0 and log S = log1p(R): 1 - p_y = R / S keeps its digits when it is small.
    Equal input gives equal bits, so every rank of a tensor-parallel group agrees on every clip decision.
    """
    shard_max, s, u, q, target = stats.unbind(-1)
    others, target = shard_max.amax(0), target.amax(0)
    row_max = torch.fmax(others, target)
    floor = exponent_floor(stats.dtype)
    empty = shard_max == -math.inf
    shift = ((shard_max - row_max) / temperature).masked_fill(empty, floor).clamp(min=floor)
    scale = shift.exp()
    label_exponent = (target - row_max) / temperature
    label_exp = label_exponent.exp()
    rest = (scale * s).sum(0)
    exp_sum = rest + label_exp
    log_sum = torch.where(target >= others, rest.log1p(), exp_sum.log())
    weighted = (scale * (u + shift * s)).sum(0) + (label_exponent * label_exp).masked_fill(label_exp == 0, 0.0)
    return MergedStats(
        row_max=row_max,
        exp_sum=exp_sum,
        rest=rest,
        log_probs=label_exponent - log_sum,
        entropy=log_sum - weighted / exp_sum,
        collision=((scale.square() * q).sum(0) + label_exp.square()) / exp_sum.square(),
    )
