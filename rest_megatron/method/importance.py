"""Importance correction: answers are drawn by an engine whose probabilities are not quite the actor's.

    E_actor[f] = E_engine[(p_actor / p_engine) f]

The loss of a token is multiplied by min(p_actor / p_engine, cap), with the actor's log-probs before the update
(truncated importance sampling: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
Training"; the truncation is that of IMPALA, arXiv 1802.01561). The cap bounds the variance and biases only what lies
above it. An answer on which the two disagree too much gives no gradient: its length-normalised ratio, the geometric
mean exp(mean_t(log p_actor - log p_engine)) over its tokens (as in GSPO, arXiv 2507.18071, Eq. 7), lies outside
[1/mask, mask].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rest_kernels.reference import bounded_log_ratio
from rest_megatron.method.means import mean_by


class TokenMismatch(NamedTuple):
    """How far apart actor and engine are at each token: float64 [T]."""

    distance: Tensor
    """|d|, d = log p_actor - log p_engine."""
    k3: Tensor
    """e^d - 1 - d: on the engine's tokens its mean estimates KL(engine || actor)."""
    clipped: Tensor
    """1 where e^d is above the cap, else 0."""


def importance_ratios(
    old_log_probs: Tensor,
    rollout_log_probs: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    cap: float | None,
    mask: float | None,
) -> Tensor:
    """float32 [T]: what the loss of each token is multiplied by; held constant in the gradient.

    min(e^d, cap) with d = old_log_probs - rollout_log_probs, 0 for all tokens of an answer that `masked_answers` finds.
    d is held within +-20, as in the loss. cap None: 1 in place of the ratio. mask None: no answer is masked.
    old_log_probs: [T], the actor's before the update. rollout_log_probs: [T], the engine's. sequence_index: int64 [T]
    in [0, num_sequences), the answer of each token; an answer is whole.
    A token of which either log-prob is not finite gets nan, so that the loss shows it, and does not mask its answer;
    with neither cap nor mask the log-probs are not read.
    """
    if cap is None and mask is None:
        return torch.ones_like(old_log_probs, dtype=torch.float32)
    gap = _gap(old_log_probs, rollout_log_probs)
    ratios = torch.where(gap.isnan(), gap, 1.0) if cap is None else bounded_log_ratio(gap).exp().clamp(max=cap)
    masked = masked_answers(old_log_probs, rollout_log_probs, sequence_index, num_sequences, mask)
    return ratios.masked_fill(masked[sequence_index], 0.0).float()


def masked_answers(
    old_log_probs: Tensor, rollout_log_probs: Tensor, sequence_index: Tensor, num_sequences: int, mask: float | None
) -> Tensor:
    """bool [num_sequences]: the answers whose geometric mean of ratios lies outside [1/mask, mask]; None: no answer.

    The arguments are those of `importance_ratios`.
    """
    if mask is None:
        return torch.zeros(num_sequences, dtype=torch.bool, device=old_log_probs.device)
    means = mean_by(sequence_index, _gap(old_log_probs, rollout_log_probs), num_sequences)
    return means.abs() > math.log(mask)


def answer_log_ratios(
    old_log_probs: Tensor, rollout_log_probs: Tensor, sequence_index: Tensor, num_sequences: int, mask: float | None
) -> Tensor:
    """float64 [num_sequences]: log of the product of an answer's ratios, sum_t d; -inf where `masked_answers` finds it.

    Not capped: what an exact correction of the whole answer would be. nan where a log-prob is not finite. The arguments
    are those of `importance_ratios`.
    """
    gap = _gap(old_log_probs, rollout_log_probs)
    sums = gap.new_zeros(num_sequences).index_add(0, sequence_index, gap)
    masked = masked_answers(old_log_probs, rollout_log_probs, sequence_index, num_sequences, mask)
    return sums.masked_fill(masked, -math.inf)


def token_mismatch(old_log_probs: Tensor, rollout_log_probs: Tensor, cap: float | None) -> TokenMismatch:
    """The statistics of each token; nan where a log-prob is not finite. The arguments are as in `importance_ratios`."""
    gap = _gap(old_log_probs, rollout_log_probs)
    held = bounded_log_ratio(gap)
    clipped = torch.zeros_like(gap) if cap is None else (held.exp() > cap).double()
    return TokenMismatch(gap.abs(), held.expm1() - held, clipped)


def _gap(old_log_probs: Tensor, rollout_log_probs: Tensor) -> Tensor:
    """float64 [T]: log p_actor - log p_engine, nan unless finite: -inf would read as a ratio of 0 and be hidden."""
    gap = old_log_probs.detach().double() - rollout_log_probs.detach().double()
    return torch.where(gap.isfinite(), gap, math.nan)
