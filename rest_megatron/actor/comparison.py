"""Two weightings of the same answers, told apart by the gradients they make: their variances, their means' direction,
and what one Adam step along each would gain.

Of each group i of answers let w_i and u_i be the gradient of the loss with the step's weights and with uniform ones,
and t_i that of minus the expected reward itself: advantage = reward less the group's mean, each token's log-prob summed
as it is, without weights, clip or regularisers. Beside both `GradientVariance`, on n groups,

    cosine  <E w, E u> / (|E w| |E u|)   from <E w, E u> = (<S_w, S_u> - sum_i <w_i, u_i>) / (n (n - 1)), S the sums,
                                         and the two mean_norm_squared, all free of bias
    gain    mean_i <t_i, d>              the first order of what the reward gains by a step of learning rate 1 along
                                         d = m / sqrt(v), as Adam's: over the first half of the groups, n_A of them, m
                                         is the mean of w (or u) and v = m^2 + (mean of w^2 - m^2) / n_A the second
                                         moment of a step made of n_A groups. The mean over i is that of the second
                                         half, which had no part in d, and so is its standard error.

Costs two passes per group and a third for the second half, and six float32 copies of this rank's gradient: a sum, and a
second moment that becomes d in place, of each weighting, and the two gradients at hand.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.group_gradients import group_gradient, inner_products, loss_gradient, of_group, zero_gradient
from rest_megatron.actor.variance import GradientVariance, from_moments, mean_error
from rest_megatron.types import PolicyStreams, Trajectory

ARMS = ("weights", "uniform")
SMALLEST = math.sqrt(torch.finfo(torch.float32).tiny)
"""What is smaller has no float32 square; it counts as nothing in a direction."""


class Comparison(NamedTuple):
    """What is measured of ARMS, one entry for each; gains are of each group of the second half."""

    variances: tuple[GradientVariance, GradientVariance]
    mean_product: float
    """<E w, E u>, without bias."""
    gains: tuple[list[float], list[float]]

    @property
    def cosine(self) -> float:
        """Of the two mean gradients; nan where one of them is lost in the noise."""
        ours, uniform = (variance.mean_norm_squared for variance in self.variances)
        return self.mean_product / math.sqrt(ours * uniform) if min(ours, uniform) > 0 else math.nan

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The numbers by name: of each arm, and of the two "together".

        difference_error: the standard error of the difference between the two variances, from the differences of
        |g_i|^2 within each group; gain_difference_error: likewise of that between the gains.
        """
        found = {
            name: variance.to_dict() | {"gain": _mean(gains), "gain_error": mean_error(gains)}
            for name, variance, gains in zip(ARMS, self.variances, self.gains, strict=True)
        }
        ours, uniform = self.variances
        squares = _differences(ours.norms_squared, uniform.norms_squared)
        found["weights"]["difference_error"] = mean_error(squares)
        difference, base = _differences(*self.gains), found["uniform"]["gain"]
        found["together"] = {
            "cosine": self.cosine,
            "gain_ratio": found["weights"]["gain"] / base if base > 0 else math.nan,
            "gain_difference": _mean(difference),
            "gain_difference_error": mean_error(difference),
        }
        return found


def compare_gradients(
    actor: Actor,
    trajectories: Sequence[Trajectory],
    group_index: Sequence[int],
    num_groups: int,
    arms: tuple[PolicyStreams, PolicyStreams],
    rewards: Tensor,
) -> Comparison:
    """Measure it for the policy loss. Collective; weights, optimizer and schedule stay as they are.

    trajectories: this data-parallel rank's; group_index: the group of each, 0 .. num_groups - 1 over all ranks, at
    least 2. Over their tokens: arms, streams with the step's weights and with uniform ones, normalised as for one
    update with all of them; rewards, [T] float32, what the log-prob of each is multiplied by in t.
    """
    half = num_groups // 2
    means, moments = ([zero_gradient(actor) for _ in ARMS] for _ in range(2))
    squares = torch.zeros(num_groups, 3, dtype=torch.float64)  # |w|^2, <w, u>, |u|^2
    gains = []
    for group in range(num_groups):
        squares[group] = _add_group(actor, trajectories, group_index, arms, group, means, moments, group < half)
        if group == half - 1:
            for mean, moment in zip(means, moments, strict=True):
                adam_direction(mean, moment, half)
        elif group >= half:
            own, streams = of_group(trajectories, group_index, arms[1]._replace(loss_weights=rewards), group)
            reward = loss_gradient(actor, own, partial(actor.losses.reward, streams.loss_weights))
            gains.append(inner_products(actor, reward, moments))
    ours, both, uniform = squares.unbind(1)
    total, product = inner_products(actor, means[0], means).tolist()
    variances = (
        from_moments(ours.tolist(), total),
        from_moments(uniform.tolist(), float(inner_products(actor, means[1], means[1:]))),
    )
    # What was added up are the groups' shares w_i / n of the step.
    mean_product = num_groups / (num_groups - 1) * (product - float(both.sum()))
    return Comparison(variances, mean_product, tuple(torch.stack(gains, dim=1).tolist()))


def adam_direction(total: list[Tensor], squares: list[Tensor], groups: int) -> None:
    """Overwrite `squares` with m / sqrt(v), entry by entry: of a step made of `groups` groups, see above.

    total, squares: float32, the sums of these groups' gradients and of their squares. Their scale cancels, and no entry
    is beyond +-1.
    """
    for whole, square in zip(total, squares, strict=True):
        mean = whole / groups
        second = square.div_(groups**2).add_(mean.square(), alpha=1.0 - 1.0 / groups)
        torch.div(mean, second.sqrt_().add_(SMALLEST), out=square)


def _add_group(
    actor: Actor,
    trajectories: Sequence[Trajectory],
    group_index: Sequence[int],
    arms: tuple[PolicyStreams, PolicyStreams],
    group: int,
    totals: list[list[Tensor]],
    moments: list[list[Tensor]],
    first_half: bool,
) -> Tensor:
    """Add a group to the arms' sums, in the first half to those of squares, too; returns its three inner products."""
    found = [group_gradient(actor, *of_group(trajectories, group_index, arm, group)) for arm in arms]
    for gradient, total, moment in zip(found, totals, moments, strict=True):
        for own, whole, square in zip(gradient, total, moment, strict=True):
            whole.add_(own)
            if first_half:
                square.addcmul_(own, own)
    return torch.cat([inner_products(actor, found[0], found), inner_products(actor, found[1], found[1:])])


def _differences(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(ours, others, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
