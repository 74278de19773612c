"""The specification: what every kernel of this package computes, in plain torch on the FULL vocabulary.

Written for clarity, not for speed or memory. Every function is differentiable by autograd and works in the dtype
it is given, so float64 input gives a float64 oracle. Symbols: x logits row, tau temperature, y label,
p = softmax(x / tau). Columns may be -inf (masked); their probability is 0.
"""

import math

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0


def token_log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log p for every column: [..., V] -> [..., V]."""
    return torch.log_softmax(logits / temperature, dim=-1)


def log_probs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log p_y: logits [..., V], labels int64 [...] -> [...]."""
    return token_log_probs(logits, temperature).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """H = -sum_v p_v log p_v in nats: [..., V] -> [...]. A column with p = 0 adds 0."""
    log_p = token_log_probs(logits, temperature)
    probs = log_p.exp()
    return -(probs * log_p.masked_fill(probs == 0, 0.0)).sum(-1)


def collision(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """sum_v p_v^2, the chance that two draws agree: [..., V] -> [...]. 1 - collision = E||score||^2 (Lemma 2)."""
    return token_log_probs(logits, temperature).mul(2).exp().sum(-1)


def shard_stats(logits: Tensor, local_labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax statistics of one vocabulary shard: logits [T, V_local] -> [T, 5], columns (m, s, u, q, t).

    Over the columns v != y, with z = (x - m) / tau: m = max x, s = sum e^z, u = sum z e^z, q = sum e^2z; and t = x_y.
    The label is left out because 1 - p_y = s / (s + e^z_y): beside the 1 of a confident label, float32 would lose it.
    `local_labels` [T] count from the shard's first column; a label outside [0, V_local) belongs to another shard and
    gives t = -inf. Where no column v != y has any probability, m = -inf and s = u = q = 0.
    """
    num_rows, num_columns = logits.shape
    if num_columns == 0:
        return logits.new_tensor([-math.inf, 0, 0, 0, -math.inf]).repeat(num_rows, 1)
    is_label = torch.arange(num_columns, device=logits.device) == local_labels.unsqueeze(-1)
    target = logits.masked_fill(~is_label, -math.inf).amax(-1)
    logits = logits.masked_fill(is_label, -math.inf)
    row_max = logits.amax(-1)
    exponent = (logits - row_max.masked_fill(row_max == -math.inf, 0.0).unsqueeze(-1)) / temperature
    exp = exponent.exp()
    weighted = exponent.masked_fill(exp == 0, 0.0) * exp
    return torch.stack((row_max, exp.sum(-1), weighted.sum(-1), exp.square().sum(-1), target), dim=-1)


def merge_shard_stats(stats: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(log p_y, entropy, collision), each [T], from the statistics [shards, T, 5] of all shards.

    Stated with the chain rule of entropy: part r holds the share w_r = Z_r / Z of the probability, so
    H = sum_r w_r (H_r - log w_r) and collision = sum_r w_r^2 collision_r. The parts are the shards without the label,
    and the label, whose entropy is 0 and whose collision is 1.
    """
    row_max, s, u, q, targets = stats.unbind(-1)
    target = targets.amax(0) / temperature
    empty = row_max == -math.inf
    s = s.masked_fill(empty, 1.0)
    log_z_shard = (row_max / temperature + s.log()).masked_fill(empty, -math.inf)
    log_z = torch.cat((log_z_shard, target.unsqueeze(0))).logsumexp(0)
    log_share = (log_z_shard - log_z).masked_fill(empty, -math.inf)
    share = log_share.exp()
    log_p = target - log_z
    label_entropy = (log_p.exp() * log_p).masked_fill(log_p == -math.inf, 0.0)
    entropy = (share * (s.log() - u / s - log_share)).masked_fill(empty, 0.0).sum(0) - label_entropy
    collision = (share.square() * q / s.square()).masked_fill(empty, 0.0).sum(0) + (2 * log_p).exp()
    return log_p, entropy, collision


def bounded_log_ratio(log_ratio: Tensor) -> Tensor:
    """A difference of log-probs held within +-LOG_RATIO_BOUND, so that exp stays finite; beyond, it has no gradient."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def clipped_loss(
    ratio: Tensor,
    advantages: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
) -> Tensor:
    """Clipped surrogate of PPO (arXiv 1707.06347 Eq. 7), optionally dual-clipped (arXiv 1912.09729 Eq. 5).

    l = max(-A r, -A clip(r, 1 - low, 1 + high)); where A < 0 and a dual clip c > 1 is given, l = min(l, -A c).
    ratio, advantages: of any one shape, which is the result's.
    """
    clipped = ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    if clip_ratio_dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * clip_ratio_dual), loss)


def held_by_clip(
    ratio: Tensor,
    advantages: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
) -> Tensor:
    """Bool: where `clipped_loss` holds the ratio, so that it has no gradient.

    Above 1 + high where A > 0; below 1 - low or above the dual clip where A < 0; nowhere at A = 0.
    """
    held_of_negative = ratio < 1 - clip_ratio_low
    if clip_ratio_dual is not None:
        held_of_negative |= ratio > clip_ratio_dual
    held_of_positive = ratio > 1 + clip_ratio_high
    return (held_of_positive & (advantages > 0)) | (held_of_negative & (advantages < 0))


def ppo_token_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
) -> Tensor:
    """`clipped_loss` of each token, with r = exp(log_probs - old_log_probs), the exponent held within +-20."""
    return clipped_loss(
        bounded_log_ratio(log_probs - old_log_probs).exp(),
        advantages,
        clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high,
        clip_ratio_dual=clip_ratio_dual,
    )


def kl_to_reference(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """Estimate k3 of KL(policy || reference) per token: e^d - 1 - d, d = ref - log_probs held within +-20."""
    delta = bounded_log_ratio(ref_log_probs - log_probs)
    return delta.exp() - 1 - delta


def ppo_loss(
    logits: Tensor,
    labels: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
    ref_log_probs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """sum_t loss_weights_t (l_t + kl_coef KL_t - entropy_coef H_t), a scalar.

    logits [..., V]; every other tensor [...]. The weights hold mask, token weight and normaliser. Raises ValueError for
    a kl_coef without ref_log_probs.
    """
    policy = log_probs(logits, labels, temperature)
    loss = ppo_token_loss(
        policy,
        old_log_probs,
        advantages,
        clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high,
        clip_ratio_dual=clip_ratio_dual,
    )
    if kl_coef != 0:
        if ref_log_probs is None:
            raise ValueError(f"kl_coef is {kl_coef} but ref_log_probs is None; pass them, or set kl_coef to 0.")
        loss = loss + kl_coef * kl_to_reference(policy, ref_log_probs)
    if entropy_coef != 0:
        loss = loss - entropy_coef * entropy(logits, temperature)
    return (loss_weights * loss).sum()
