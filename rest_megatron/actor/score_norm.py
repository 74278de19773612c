"""Squared norms of single tokens' scores over the whole model, by one backward pass per candidate token.

The gradient of log p(y | prefix) is that of a trajectory whose only target is its last token, y. Data-parallel ranks
work on different tokens and reduce nothing; they only make the same number of passes, for in each all ask whether to
stop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.group_gradients import counts_here, own_gradient
from rest_megatron.actor.microbatch import MicroBatch
from rest_megatron.types import Trajectory


class Norm(NamedTuple):
    """|g|^2 of one candidate, and the part of it in the embedding and the LM head."""

    total: float
    ends: float


def distributions(actor: Actor, trajectory: Trajectory | None) -> Tensor:
    """p [n, V] float64 at each target of `trajectory`, on every rank of its copy of the model. Collective.

    At rollout.temperature. None: this data-parallel rank has no answer left while others have.
    """
    vocabulary, parallel = actor.policy.hf.vocab_size, actor.parallel
    count = 0 if trajectory is None else trajectory.num_targets
    out = torch.zeros(count, vocabulary, dtype=torch.float32, device=parallel.device)

    def compute(batch: MicroBatch, hidden: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor]:
        return batch.index, gather_from_tensor_model_parallel_region(actor.head.logits(hidden).float())

    actor.policy.eval()
    with torch.no_grad():
        for index, rows in actor.run([] if trajectory is None else [trajectory], compute, forward_only=True):
            out[index] = rows
    out = parallel.broadcast_from_last_stage(out)
    return torch.softmax(out.double() / actor.config.rollout.temperature, dim=-1)


def score_norms(actor: Actor, trajectories: Sequence[Trajectory]) -> list[Norm]:
    """|d log p(last token) / d theta|^2 of each trajectory, over all parameters, those held twice counted once.

    Collective; the lists of data-parallel ranks may differ. Weights, optimizer and schedule stay as they are.
    """
    rounds = max(actor.parallel.gather_over_data_parallel(len(trajectories)))
    norms = []
    for i in range(rounds):
        mine = [_last_only(t) for t in trajectories[i : i + 1]]
        norm = _norm(actor, mine)
        norms += [norm] * len(mine)
    return norms


def _last_only(trajectory: Trajectory) -> Trajectory:
    mask = [False] * (len(trajectory.response_ids) - 1) + [True]
    return trajectory._replace(response_mask=mask)


def _norm(actor: Actor, trajectories: list[Trajectory]) -> Norm:
    def loss(batch: MicroBatch, hidden: Tensor) -> tuple:
        stats = actor.head.token_stats(hidden, batch.labels, actor.config.rollout.temperature, collision=False)
        count = torch.tensor(batch.rows.shape[0], dtype=torch.int, device=hidden.device)
        # No factor of the data-parallel size: the gradient is read before DeepSpeed would average it.
        return stats.log_probs.sum(), count, ()

    sums = torch.zeros(2, dtype=torch.float64, device=actor.parallel.device)
    with own_gradient(actor, trajectories, loss) as found:
        for name, parameter, gradient in found:
            if gradient is not None and counts_here(parameter, actor.parallel):
                square = torch.linalg.vector_norm(gradient, dtype=torch.float64).square()
                sums[0] += square
                sums[1] += square * ("embedding" in name or "output_layer" in name)
    dist.all_reduce(sums, group=parallel_state.get_model_parallel_group())
    return Norm(*sums.tolist())
