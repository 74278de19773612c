"""How much the policy gradient varies from prompt to prompt, measured on one step's answers.

The gradient of a step is the mean of its groups' gradients g_1 .. g_n, one group of answers per prompt. Over the choice
of prompts and answers, g has a mean and a covariance C, of which this estimates, without bias,

    variance           tr C  = (sum_i |g_i|^2 - |sum_i g_i|^2 / n) / (n - 1)
    mean_norm_squared  |E g|^2 = |sum_i g_i / n|^2 - tr C / n              (may come out negative when noise dominates)
    standard_error     of tr C, from the spread of |g_i|^2 over the groups: sd(|g_i|^2) / sqrt(n)
    relative           tr C / |E g|^2, the noise-to-signal ratio ("simple noise scale", arXiv 1812.06162)

Token weights change the expected gradient as well as its noise: only the relative number compares two weightings.
Every parameter counts, over all tensor- and pipeline-parallel shards. Costs one pass per group, and two float32 copies
of this rank's gradient.
"""

import math
from collections.abc import Sequence
from functools import partial
from statistics import stdev
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.gradients import COUNTED_ELSEWHERE, accumulated_gradient, sum_replicated_gradients
from rest_megatron.types import PolicyStreams, Trajectory


class GradientVariance(NamedTuple):
    """Variance of one group's gradient, see above. variance and relative are nan for fewer than two groups."""

    variance: float
    mean_norm_squared: float
    norms_squared: tuple[float, ...]
    """|g_i|^2 of each group."""

    @property
    def relative(self) -> float:
        """variance / mean_norm_squared; inf where the mean is lost in the noise."""
        return self.variance / self.mean_norm_squared if self.mean_norm_squared > 0 else math.inf

    @property
    def standard_error(self) -> float:
        """Of the variance."""
        return mean_error(self.norms_squared)

    def to_dict(self) -> dict[str, float]:
        """The numbers by name."""
        return {
            "variance": self.variance,
            "standard_error": self.standard_error,
            "mean_norm_squared": self.mean_norm_squared,
            "relative": self.relative,
            "groups": len(self.norms_squared),
        }


def mean_error(values: Sequence[float]) -> float:
    """The standard error of the mean of `values`; nan for fewer than two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def gradient_variance(
    actor: Actor,
    trajectories: Sequence[Trajectory],
    group_index: Sequence[int],
    num_groups: int,
    streams: PolicyStreams,
) -> GradientVariance:
    """Measure it for the policy loss. Collective; weights, optimizer and schedule stay as they are.

    trajectories: this data-parallel rank's; group_index: the group of each, 0 .. num_groups - 1 over all ranks;
    streams: over their tokens, normalised as for one update with all of them.
    """
    if num_groups < 2:
        return GradientVariance(math.nan, math.nan, (math.nan,) * num_groups)
    lengths = torch.tensor([t.num_targets for t in trajectories], dtype=torch.int64)
    token_groups = torch.tensor(group_index, dtype=torch.int64).repeat_interleave(lengths)
    total: list[Tensor] = []
    squares: list[float] = []
    for group in range(num_groups):
        mine = [t for t, own in zip(trajectories, group_index, strict=True) if own == group]
        tokens = (token_groups == group).nonzero().squeeze(1).to(actor.parallel.device)
        gradient = _gradient(actor, mine, streams.select(tokens))
        squares.append(_norm_squared(actor, gradient))
        total = [a.add_(b) for a, b in zip(total, gradient, strict=True)] if total else gradient
    return _moments(squares, _norm_squared(actor, total))


def _moments(squares: Sequence[float], total_squared: float) -> GradientVariance:
    """From each |g_i / n|^2 and |sum_i g_i / n|^2: what was accumulated are the groups' shares g_i / n of the step."""
    n = len(squares)
    variance = n * (n * sum(squares) - total_squared) / (n - 1)
    return GradientVariance(variance, total_squared - variance / n, tuple(n * n * x for x in squares))


def _gradient(actor: Actor, trajectories: Sequence[Trajectory], streams: PolicyStreams) -> list[Tensor]:
    """float32 gradient of this rank's shard, summed over data-parallel ranks, in the order of the parameters."""
    actor.policy.train()
    actor.zero.begin()
    actor.run(trajectories, partial(actor.policy_loss, streams), forward_only=False)
    sum_replicated_gradients(actor.policy, actor.zero.optimizer, actor.parallel)
    gradients = []
    for parameter in actor.policy.parameters():
        own = accumulated_gradient(actor.zero.optimizer, parameter)
        copy = torch.zeros_like(parameter, dtype=torch.float32) if own is None else own.to(torch.float32, copy=True)
        dist.all_reduce(copy, group=actor.parallel.dp_group)
        # The schedule's loss carries a factor of the data-parallel size, for DeepSpeed's mean.
        gradients.append(copy.div_(actor.parallel.dp_size))
    actor.zero.discard()
    return gradients


def _norm_squared(actor: Actor, gradient: list[Tensor]) -> float:
    """|gradient|^2 over the whole model, replicated parameters counted once."""
    total = torch.zeros((), dtype=torch.float64, device=actor.parallel.device)
    for parameter, own in zip(actor.policy.parameters(), gradient, strict=True):
        sharded = getattr(parameter, "tensor_model_parallel", False)
        copied = getattr(parameter, COUNTED_ELSEWHERE, False)
        if not copied and (sharded or actor.parallel.tp_rank == 0):
            total += torch.linalg.vector_norm(own, dtype=torch.float64).square()
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return float(total)
