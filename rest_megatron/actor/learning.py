"""Which answers have a gradient at all; the others need not be run to make an update."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rest_megatron.types import PolicyStreams, Trajectory


class Learning(NamedTuple):
    """An update's answers, those with a gradient apart."""

    trajectories: list[Trajectory]
    streams: PolicyStreams
    """Their vectors."""
    places: Tensor
    """[n] int64: where these lie in those of all."""
    others: list[Trajectory]
    """The other answers."""
    other_places: Tensor
    """[m] int64: where their tokens lie."""
    left_out: Tensor
    """0-dim float64: those of their tokens that have a weight."""


def has_gradient(streams: PolicyStreams, regularised: bool) -> Tensor:
    """bool [T]: tokens with a loss weight and an advantage; regularised: with a loss weight."""
    weighted = streams.loss_weights != 0
    return weighted if regularised else weighted & (streams.advantages != 0)


def learning(trajectories: Sequence[Trajectory], streams: PolicyStreams, regularised: bool) -> Learning:
    """Those with a token whose loss weight and advantage are not 0; regularised: whose loss weight is not 0.

    An answer is run whole or not at all, for the ratio of whole answers (GSPO) reads all of its tokens. streams: over
    the target tokens of `trajectories`, advantages not nan. regularised: whether the loss has a term without advantage.
    """
    weighted, teaches = streams.loss_weights != 0, has_gradient(streams, regularised)
    lengths = torch.tensor([t.num_targets for t in trajectories], dtype=torch.int64, device=weighted.device)
    answer = torch.arange(len(trajectories), device=weighted.device).repeat_interleave(lengths)
    kept = torch.zeros(len(trajectories), dtype=torch.bool, device=weighted.device)
    kept[answer[teaches]] = True
    read = kept[answer]
    places, others = (where.nonzero().squeeze(1) for where in (read, ~read))
    pairs = list(zip(trajectories, kept.tolist(), strict=True))
    return Learning(
        [t for t, keep in pairs if keep],
        streams.select(places),
        places,
        [t for t, keep in pairs if not keep],
        others,
        (weighted & ~read).sum().double(),
    )
