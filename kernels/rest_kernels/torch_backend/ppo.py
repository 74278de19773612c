"""Merged statistics and the weighted, clipped policy loss with its derivative, on vectors of tokens."""

import torch
from torch import Tensor

from ..reference import LOG_RATIO_BOUND, bounded_log_ratio
from ..settings import PPOSettings
from ..tokens import PPOInputs, PPORows, Softmax, Tokens
from .merge import merge_stats


@torch.no_grad()
def ppo_rows(stats: Tensor, tokens: Tokens, softmax: Softmax, inputs: PPOInputs, settings: PPOSettings) -> PPORows:
    """See `backend.Backend.ppo_rows`.

    Pessimism makes the clip one-sided: the ratio is held below 1 + high where A > 0, and above 1 - low (and below the
    dual clip) where A < 0. So l = -A clamp(r), whose derivative -A r vanishes exactly where a bound holds.
    """
    merged = merge_stats(stats, tokens, softmax)
    log_probs, active, weight = merged.log_probs, tokens.active(), tokens.loss_weights
    if weight is None:
        raise ValueError("the policy loss needs weights, but tokens.loss_weights is None")
    advantages = inputs.advantages
    gap = log_probs - inputs.old_log_probs
    delta = bounded_log_ratio(gap)
    ratio = delta.exp()
    negative = advantages < 0
    lower = torch.zeros_like(ratio).masked_fill(negative, 1 - settings.clip_ratio_low)
    upper = torch.full_like(ratio, 1 + settings.clip_ratio_high)
    upper.masked_fill_(negative, settings.upper_bound_of_negative)
    held = (ratio < lower) | (ratio > upper)
    loss = -advantages * ratio.clamp(lower, upper)
    grad = (-advantages * ratio).masked_fill(held | (gap.abs() > LOG_RATIO_BOUND), 0.0)
    if settings.kl_coef != 0 and inputs.ref_log_probs is not None:
        gap = inputs.ref_log_probs - log_probs
        bounded = bounded_log_ratio(gap)
        loss = loss + settings.kl_coef * _k3(bounded)
        grad = grad - (settings.kl_coef * bounded.expm1()).masked_fill(gap.abs() > LOG_RATIO_BOUND, 0.0)
    entropy_grad = None
    if settings.entropy_coef != 0:
        loss = loss - settings.entropy_coef * merged.entropy
        entropy_grad = (-settings.entropy_coef * weight).masked_fill(~active, 0.0)
    clipped = held & (advantages != 0)
    columns = (
        weight * loss,
        torch.ones_like(loss),
        clipped.to(loss.dtype),
        (clipped & negative).to(loss.dtype),
        _k3(delta),
        ratio,
        merged.entropy,
    )
    sums = torch.stack([column.masked_fill(~active, 0.0).sum() for column in columns])
    return PPORows(merged, (weight * grad).masked_fill(~active, 0.0), entropy_grad, sums)


def _k3(delta: Tensor) -> Tensor:
    """e^d - 1 - d. In float64: near 0 it is d^2 / 2, which the difference of float32 values would lose."""
    exact = delta.double()
    return (exact.expm1() - exact).to(delta.dtype)
