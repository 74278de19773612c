"""Which answers have a gradient at all; the others need not be run to make an update."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rest_megatron.types import PolicyStreams, Trajectory


class Learning(NamedTuple):
    """The answers that an update runs."""

    trajectories: list[Trajectory]
    streams: PolicyStreams
    """Their vectors."""
    places: Tensor
    """[n] int64: where these lie in those of all."""
    left_out: Tensor
    """0-dim float64: tokens with a weight in the other answers."""


def learning(trajectories: Sequence[Trajectory], streams: PolicyStreams, regularised: bool) -> Learning:
    """Those with a token whose loss weight and advantage are not 0; regularised: whose loss weight is not 0.

    An answer is run whole or not at all, for the ratio of whole answers (GSPO) reads all of its tokens. streams: over
    the target tokens of `trajectories`, advantages not nan. regularised: whether the loss has a term without advantage.
    """
    weighted = streams.loss_weights != 0
    teaches = weighted if regularised else weighted & (streams.advantages != 0)
    lengths = torch.tensor([t.num_targets for t in trajectories], device=weighted.device)
    answer = torch.arange(len(trajectories), device=weighted.device).repeat_interleave(lengths)
    kept = torch.zeros(len(trajectories), dtype=torch.bool, device=weighted.device)
    kept[answer[teaches]] = True
    read = kept[answer] if len(trajectories) else torch.zeros_like(weighted)
    places = read.nonzero().squeeze(1)
    own = [t for t, keep in zip(trajectories, kept.tolist(), strict=True) if keep]
    return Learning(own, streams.select(places), places, (weighted & ~read).sum().double())
