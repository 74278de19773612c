"""From the last hidden states to log-probs and the policy loss: the actor's only path through the vocabulary.

Only rows that predict a target take it. `kernels.level` says where the kernels take over: with "logits" they read the
vocabulary-parallel logits of all these rows in their working precision, with "hidden" they take the hidden states and
multiply a chunk of the rows at a time.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce
from torch import Tensor

from rest_kernels import (
    LogProbEntropy,
    PPOLoss,
    linear_logprob_entropy,
    linear_ppo_loss,
    vocab_parallel_logprob_entropy,
    vocab_parallel_ppo_loss,
)
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.model import Policy
from rest_megatron.types import PolicyStreams


class Head:
    """The kernels with this rank's place in the vocabulary and the run's settings filled in.

    `hidden`, labels and per-token vectors are over the n targets of a pack: `hidden` [n, h] is what `rows` gives.
    Logits are overwritten by their gradient in the backward pass.
    """

    def __init__(self, policy: Policy, config: Config, parallel: Parallel) -> None:
        self.policy = policy
        self.algorithm = config.algorithm
        self.level = config.kernels.level
        self.sequence_parallel = config.parallel.sequence_parallel
        self.tp_group = parallel.tp_group
        num_columns = policy.hf.vocab_size // parallel.tp_size
        common: dict[str, Any] = dict(
            tp_group=self.tp_group if parallel.tp_size > 1 else None,
            vocab_size=policy.hf.vocab_size,
            vocab_start=parallel.tp_rank * num_columns,
            backend=config.kernels.backend,
        )
        self._logprob_entropy: Callable[..., LogProbEntropy]
        self._ppo_loss: Callable[..., PPOLoss]
        if self.level == "logits":
            common["inplace_backward"] = True
            self._logprob_entropy = partial(vocab_parallel_logprob_entropy, **common)
            self._ppo_loss = partial(vocab_parallel_ppo_loss, **common)
        else:
            common["chunk_size"] = config.kernels.chunk_size
            self._logprob_entropy = partial(linear_logprob_entropy, **common)
            self._ppo_loss = partial(linear_ppo_loss, **common)

    def rows(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """[n, h], the same on all tensor-parallel ranks: those of what the last chunk returned for a pack of t tokens.

        hidden: [t, 1, h] ([t / TP, 1, h] under sequence parallelism); rows: int64 [n] in [0, t), where one may come
        more than once.
        """
        if self.sequence_parallel:
            # Every rank has the whole gradient of the rows.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        return hidden.squeeze(1)[rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab / TP] of this vocabulary shard, as the GEMM makes them, in the working precision."""
        return linear_with_grad_accumulation_and_async_allreduce(
            input=hidden,
            weight=self.policy.chunks[-1].output_weight(),
            bias=None,
            gradient_accumulation_fusion=False,
            allreduce_dgrad=self.tp_group.size() > 1,
            sequence_parallel=False,
            tp_group=self.tp_group,
        )

    def token_stats(
        self,
        hidden: Tensor,
        labels: Tensor,
        temperature: float,
        collision: bool,
        entropy_requires_grad: bool = False,
    ) -> LogProbEntropy:
        """Log-probs (differentiable), entropy and, on request, collision of the labels, each float32 [n]."""
        return self._logprob_entropy(
            *self._inputs(hidden),
            labels,
            temperature=temperature,
            return_collision=collision,
            entropy_requires_grad=entropy_requires_grad,
        )

    def norm_squared(self, hidden: Tensor) -> Tensor:
        """|h|^2 of every row, float32 [n], without gradient: the LM head's part in the norm of a token's score."""
        return torch.linalg.vector_norm(hidden.detach(), dim=-1, dtype=torch.float32).square()

    def policy_loss(self, hidden: Tensor, labels: Tensor, temperature: float, streams: PolicyStreams) -> PPOLoss:
        """The weighted clipped loss, a sum over tokens; clip bounds and coefficients are those of `algorithm`."""
        return self._ppo_loss(
            *self._inputs(hidden),
            labels,
            streams.old_log_probs,
            streams.advantages,
            streams.loss_weights,
            clip_ratio_low=self.algorithm.clip_ratio_low,
            clip_ratio_high=self.algorithm.clip_ratio_high,
            clip_ratio_dual=self.algorithm.clip_ratio_dual,
            ref_log_probs=streams.ref_log_probs,
            kl_coef=self.algorithm.kl_coef,
            entropy_coef=self.algorithm.entropy_coef,
            temperature=temperature,
        )

    def _inputs(self, hidden: Tensor) -> tuple[Tensor, ...]:
        if self.level == "logits":
            return (self.logits(hidden),)
        return hidden, self.policy.chunks[-1].output_weight()
