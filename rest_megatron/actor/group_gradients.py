"""The gradient of one group of answers, as a list of this rank's shards, and inner products over the whole model.

Weights, optimizer and schedule stay as they are. A gradient is float32, one tensor for each parameter of this rank in
their order, summed over data-parallel ranks; a parameter of which a rank has only a copy counts once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.gradients import COUNTED_ELSEWHERE, accumulated_gradient, sum_replicated_gradients
from rest_megatron.actor.learning import learning
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.types import PolicyStreams, Trajectory


def of_group(
    trajectories: Sequence[Trajectory], group_index: Sequence[int], streams: PolicyStreams, group: int
) -> tuple[list[Trajectory], PolicyStreams]:
    """This rank's answers of a group, and their entries of `streams`.

    group_index: the group of each of the trajectories, whose target tokens `streams` are over.
    """
    lengths = torch.tensor([t.num_targets for t in trajectories], dtype=torch.int64)
    token_groups = torch.tensor(group_index, dtype=torch.int64).repeat_interleave(lengths)
    tokens = (token_groups == group).nonzero().squeeze(1).to(streams.loss_weights.device)
    return [t for t, own in zip(trajectories, group_index, strict=True) if own == group], streams.select(tokens)


def group_gradient(actor: Actor, trajectories: Sequence[Trajectory], streams: PolicyStreams) -> list[Tensor]:
    """Of the policy loss of these answers of all data-parallel ranks. Collective."""
    part = learning(trajectories, streams, actor.config.algorithm.regularised)
    return loss_gradient(actor, part.trajectories, partial(actor.losses.policy, part.streams))


def loss_gradient(actor: Actor, trajectories: Sequence[Trajectory], loss: Callable[..., tuple]) -> list[Tensor]:
    """Of another loss, one of the actor's as its schedule takes it. Collective."""
    gradients = []
    with own_gradient(actor, trajectories, loss) as found:
        for _, parameter, own in found:
            copy = torch.zeros_like(parameter, dtype=torch.float32) if own is None else own.to(torch.float32, copy=True)
            dist.all_reduce(copy, group=actor.parallel.dp_group)
            # The schedule's loss carries a factor of the data-parallel size, for DeepSpeed's mean.
            gradients.append(copy.div_(actor.parallel.dp_size).view(parameter.shape))  # DeepSpeed keeps bf16's flat
    return gradients


@contextmanager
def own_gradient(
    actor: Actor, trajectories: Sequence[Trajectory], loss: Callable[..., tuple]
) -> Iterator[list[tuple[str, nn.Parameter, Tensor | None]]]:
    """What the loss of this data-parallel rank's answers alone has as gradient, dropped at the end. Collective.

    Name, parameter and gradient, None where there is none: DeepSpeed's own tensors, in its precision and shape.
    """
    actor.policy.train()
    actor.zero.begin()
    actor.run(trajectories, loss, forward_only=False)
    optimizer = actor.zero.optimizer
    sum_replicated_gradients(actor.policy, optimizer, actor.parallel)
    yield [(name, p, accumulated_gradient(optimizer, p)) for name, p in actor.policy.named_parameters()]
    actor.zero.discard()


def zero_gradient(actor: Actor) -> list[Tensor]:
    """To add gradients up in."""
    return [torch.zeros_like(parameter, dtype=torch.float32) for parameter in actor.policy.parameters()]


def counts_here(parameter: nn.Parameter, parallel: Parallel) -> bool:
    """Whether this rank is the one of its model's that counts the parameter, or a shard of it, in a sum over all."""
    sharded = getattr(parameter, "tensor_model_parallel", False)
    return not getattr(parameter, COUNTED_ELSEWHERE, False) and (sharded or parallel.tp_rank == 0)


def inner_products(
    actor: Actor, gradient: list[Tensor], others: Sequence[list[Tensor]], metric: list[Tensor] | None = None
) -> Tensor:
    """float64 [len(others)], on the CPU: sum_j d_j gradient_j other_j over the whole model. Collective.

    metric: d, a positive float32 number for each entry of a gradient; None: all 1.
    """
    totals = torch.zeros(len(others), dtype=torch.float64, device=actor.parallel.device)
    for place, parameter in enumerate(actor.policy.parameters()):
        if not counts_here(parameter, actor.parallel):
            continue
        own = gradient[place] if metric is None else gradient[place] * metric[place]
        for number, other in enumerate(others):
            totals[number] += torch.sum(own * other[place], dtype=torch.float64)
    dist.all_reduce(totals, group=parallel_state.get_model_parallel_group())
    return totals.cpu()
