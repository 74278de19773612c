"""Group-relative advantages (GRPO, arXiv 2402.03300): one number per response, from its group's scores."""

import torch

EPSILON = 1e-6


def group_relative(scores: torch.Tensor, *, normalize_by_std: bool) -> torch.Tensor:
    """float32 [N, G]: score minus the group's mean, over its sample standard deviation + 1e-6 if asked.

    scores: [N, G], G answers to each of N prompts. A group whose scores are all equal gets exactly 0.
    Raises ValueError for G < 2, where no answer can be compared, and for a score that is not finite.
    """
    if scores.dim() != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)}; expected [prompts, group_size] with group_size >= 2"
        )
    if not torch.isfinite(scores).all():
        bad = (~torch.isfinite(scores)).nonzero()[0].tolist()
        raise ValueError(f"score {scores[tuple(bad)].item()} of prompt {bad[0]}, answer {bad[1]} is not finite")
    exact = scores.double()
    advantages = exact - exact.mean(dim=1, keepdim=True)
    if normalize_by_std:
        advantages = advantages / (exact.std(dim=1, keepdim=True) + EPSILON)
    return advantages.masked_fill(zero_variance_groups(scores)[:, None], 0.0).float()


def zero_variance_groups(scores: torch.Tensor) -> torch.Tensor:
    """bool [N]: the groups of `scores` [N, G] whose answers all score the same, and so teach nothing."""
    return scores.amax(dim=1) == scores.amin(dim=1)
