"""What the actor makes of a micro-batch: statistics of its targets, and its losses as Megatron's schedule takes them.

`hidden` [n, h] are the last hidden states of the rows that predict the micro-batch's targets.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from rest_kernels import LogProbEntropy
from rest_megatron.actor.head import Head
from rest_megatron.actor.microbatch import MicroBatch
from rest_megatron.actor.on_policy import answer_loss, on_policy_loss
from rest_megatron.actor.sums import POLICY_SUMS, SUPERVISED_SUMS, stacked
from rest_megatron.config.schema import Config
from rest_megatron.types import PolicyStreams


class Losses:
    """Of a run's settings. Each loss returns what `_for_schedule` does."""

    def __init__(self, head: Head, config: Config, dp_size: int) -> None:
        self.head = head
        self.config = config
        self.dp_size = dp_size

    def token_stats(self, batch: MicroBatch, hidden: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor]:
        """(where its targets lie, `TokenStats` of them as [4, n])."""
        out = self.head.token_stats(hidden, batch.labels, self.config.rollout.temperature, collision=True)
        return batch.index, self._stacked_stats(hidden, out)

    def _stacked_stats(self, hidden: Tensor, stats: LogProbEntropy) -> Tensor:
        """[4, n] in the order of `TokenStats`, without gradient."""
        collision = cast(Tensor, stats.collision)  # it is there when asked for
        norms = self.head.norm_squared(hidden)
        return torch.stack([stats.log_probs.detach(), stats.entropy.detach(), collision, norms])

    def on_policy(self, streams: PolicyStreams, batch: MicroBatch, hidden: Tensor) -> tuple:
        """`on_policy_loss` of one micro-batch as Megatron's schedule takes it."""
        temperature, entropy_coef = self.config.rollout.temperature, self.config.algorithm.entropy_coef
        stats = self.head.token_stats(
            hidden, batch.labels, temperature, collision=True, entropy_requires_grad=entropy_coef > 0
        )
        loss, sums = on_policy_loss(stats, streams.select(batch.index), batch, self.config.algorithm)
        return self._for_schedule(loss, batch, POLICY_SUMS, sums, self._stacked_stats(hidden, stats))

    def policy(self, streams: PolicyStreams, batch: MicroBatch, hidden: Tensor) -> tuple:
        """The clipped loss of one micro-batch as Megatron's schedule takes it."""
        temperature, own = self.config.rollout.temperature, streams.select(batch.index)
        if self.config.algorithm.ratio == "sequence":
            stats = self.head.token_stats(hidden, batch.labels, temperature, collision=False)
            loss, sums = answer_loss(stats, own, batch, self.config.algorithm)
            return self._for_schedule(loss, batch, POLICY_SUMS, sums, stats.log_probs)
        out = self.head.policy_loss(hidden, batch.labels, temperature, own)
        return self._for_schedule(out.loss, batch, POLICY_SUMS, out.metrics, out.log_probs)

    def reward(self, rewards: Tensor, batch: MicroBatch, hidden: Tensor) -> tuple:
        """-sum_t rewards_t log p_t of one micro-batch, [T] float32 over this rank's target tokens, for the schedule."""
        out = self.head.token_stats(hidden, batch.labels, self.config.rollout.temperature, collision=False)
        loss = -(rewards[batch.index] * out.log_probs).sum()
        sums = {"num_tokens": torch.tensor(batch.rows.shape[0], device=loss.device)}
        return self._for_schedule(loss, batch, SUPERVISED_SUMS, sums, out.log_probs)

    def supervised(self, num_tokens_global: int, batch: MicroBatch, hidden: Tensor) -> tuple:
        """The share of one micro-batch in the mean of -log p over `num_tokens_global` targets, for the schedule."""
        out = self.head.token_stats(hidden, batch.labels, temperature=1.0, collision=False)
        loss = -out.log_probs.sum() / num_tokens_global
        sums = {"num_tokens": torch.tensor(batch.rows.shape[0], device=loss.device)}
        return self._for_schedule(loss, batch, SUPERVISED_SUMS, sums, out.log_probs)

    def _for_schedule(
        self, loss: Tensor, batch: MicroBatch, names: Sequence[str], sums: dict[str, Tensor], values: Tensor
    ) -> tuple:
        """Megatron's (loss, token count, data to keep); kept are the sums `names` and each target's `values` [..., n].

        DeepSpeed averages gradients over data-parallel ranks; ours is a sum over them, hence the factor.
        """
        totals = stacked({"loss": loss, **sums}, names)
        count = torch.tensor(len(batch.rows), dtype=torch.int, device=loss.device)
        return loss * self.dp_size, count, (totals, (batch.index, values.detach()))
