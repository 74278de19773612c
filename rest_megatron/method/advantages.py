"""Advantages: one number per answer, from the scores of its group; and DAPO's penalty on long answers."""

import torch
from torch import Tensor

EPSILON = 1e-6


def group_relative(scores: Tensor, *, normalize_by_std: bool) -> Tensor:
    """float32 [N, G]: score minus the group's mean, over its sample standard deviation + 1e-6 with `normalize_by_std`.

    GRPO (arXiv 2402.03300); without the deviation Dr.GRPO (arXiv 2503.20783).
    scores: [N, G], G answers to each of N prompts. A group whose scores are all equal gets exactly 0.
    Raises ValueError for G < 2, where no answer can be compared, and for a score that is not finite.
    """
    _check_groups(scores)
    exact = scores.double()
    advantages = exact - exact.mean(dim=1, keepdim=True)
    if normalize_by_std:
        advantages = advantages / (exact.std(dim=1, keepdim=True) + EPSILON)
    return advantages.masked_fill(zero_variance_groups(scores)[:, None], 0.0).float()


def leave_one_out(scores: Tensor) -> Tensor:
    """float32 [N, G]: score minus the mean of the group's OTHER scores (RLOO, arXiv 2402.14740 Eq. 8).

    scores: [N, G]. A group whose scores are all equal gets exactly 0.
    Raises ValueError for G < 2 and for a score that is not finite.
    """
    _check_groups(scores)
    exact = scores.double()
    others = (exact.sum(dim=1, keepdim=True) - exact) / (scores.shape[1] - 1)
    return (exact - others).masked_fill(zero_variance_groups(scores)[:, None], 0.0).float()


def zero_variance_groups(scores: Tensor) -> Tensor:
    """bool [N]: the groups of `scores` [N, G] whose answers all score the same, and so teach nothing."""
    return scores.amax(dim=1) == scores.amin(dim=1)


def overlong_penalty(lengths: Tensor, max_new_tokens: int, buffer: int, penalty: float) -> Tensor:
    """float32, the shape of `lengths`: what to add to a score for the answer's length, from 0 down to -penalty.

    DAPO's soft punishment (arXiv 2503.14476 Eq. 13): 0 up to max_new_tokens - buffer, then linear down to -penalty at
    max_new_tokens. lengths: tokens of each answer; a buffer of 0 punishes nothing.
    Raises ValueError for a buffer outside [0, max_new_tokens].
    """
    if not 0 <= buffer <= max_new_tokens:
        raise ValueError(f"overlong buffer {buffer} must lie in [0, max_new_tokens={max_new_tokens}]")
    if buffer == 0:
        return torch.zeros_like(lengths, dtype=torch.float32)
    excess = (lengths.double() - (max_new_tokens - buffer)) / buffer
    return (-penalty * excess.clamp(0.0, 1.0)).float()


def _check_groups(scores: Tensor) -> None:
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; expected [prompts, group_size] with group_size >= 2"
        )
    if not torch.isfinite(scores).all():
        bad = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise ValueError(f"score {scores[tuple(bad)].item()} of prompt {bad[0]}, answer {bad[1]} is not finite")
