"""The clipped policy loss on per-token vectors, and the counts that describe it."""

import math

import torch
from torch import Tensor

from .reference import LOG_RATIO_BOUND


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_dual: float | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's token loss [N] (`reference.ppo_token_loss`) and the metric sums over the N tokens.

    Pessimism makes the clip one-sided: the ratio is held below 1 + high where A > 0, and above 1 - low (and below the
    dual clip) where A < 0. So l = -A * clamp(r), whose derivative -A r vanishes exactly where the clip is active.
    """
    delta = (log_probs - old_log_probs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    ratio = delta.exp()
    negative = advantages < 0
    dual = math.inf if clip_ratio_dual is None else clip_ratio_dual
    lower = torch.zeros_like(ratio).masked_fill(negative, 1 - clip_ratio_low)
    upper = torch.full_like(ratio, 1 + clip_ratio_high).masked_fill(negative, dual)
    bounded = ratio.clamp(lower, upper)
    with torch.no_grad():
        clipped = (bounded != ratio) & (advantages != 0)
        sums = {
            "clipped": clipped.sum(),
            "clipped_low": (clipped & negative).sum(),
            "approx_kl": (torch.expm1(delta) - delta).sum(),
            "ratio": ratio.sum(),
        }
    return -advantages * bounded, {name: total.to(ratio.dtype) for name, total in sums.items()}
