"""From the last hidden states to log-probs and the policy loss: the actor's only path through the vocabulary.

`kernels.level` says where the kernels take over. With "logits" Megatron's output layer multiplies all rows of a pack,
and the kernels read its vocabulary-parallel logits in their working precision. With "hidden" they take the hidden
states and multiply a chunk of the rows that predict an answer at a time; the prompt's rows never reach the vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from rest_kernels import (
    LogProbEntropy,
    PPOLoss,
    linear_logprob_entropy,
    linear_ppo_loss,
    vocab_parallel_logprob_entropy,
    vocab_parallel_ppo_loss,
)
from rest_megatron.actor.microbatch import IGNORE_INDEX
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.model import Policy


class Head:
    """The kernels with this rank's place in the vocabulary and the run's settings filled in.

    `hidden` is what the last chunk returned for a pack of t tokens: [t, 1, h] ([t / TP, 1, h] under sequence
    parallelism). Logits are overwritten by their gradient in the backward pass. Labels and per-token vectors are [t].
    """

    def __init__(self, policy: Policy, config: Config, parallel: Parallel) -> None:
        self.policy = policy
        self.algorithm = config.algorithm
        self.level = config.kernels.level
        self.sequence_parallel = config.parallel.sequence_parallel
        num_columns = policy.hf.vocab_size // parallel.tp_size
        common: dict[str, Any] = dict(
            tp_group=parallel.tp_group if parallel.tp_size > 1 else None,
            vocab_size=policy.hf.vocab_size,
            vocab_start=parallel.tp_rank * num_columns,
            ignore_index=IGNORE_INDEX,
            backend=config.kernels.backend,
        )
        self._logprob_entropy: Callable[..., LogProbEntropy]
        self._ppo_loss: Callable[..., PPOLoss]
        if self.level == "logits":
            common["inplace_backward"] = True
            self._logprob_entropy = partial(vocab_parallel_logprob_entropy, **common)
            self._ppo_loss = partial(vocab_parallel_ppo_loss, **common)
        else:
            common |= dict(chunk_size=config.kernels.chunk_size, sequence_parallel=self.sequence_parallel)
            self._logprob_entropy = partial(linear_logprob_entropy, **common)
            self._ppo_loss = partial(linear_ppo_loss, **common)

    def token_stats(self, hidden: Tensor, labels: Tensor, temperature: float, collision: bool) -> LogProbEntropy:
        """Log-probs (differentiable), entropy and, on request, collision of the labels, each float32 [t]."""
        return self._logprob_entropy(*self._inputs(hidden), labels, temperature=temperature, return_collision=collision)

    def norm_squared(self, hidden: Tensor) -> Tensor:
        """|h|^2 of every row, float32 [t], without gradient: the LM head's part in the norm of a token's score."""
        with torch.no_grad():
            squares = torch.linalg.vector_norm(hidden.squeeze(1), dim=-1, dtype=torch.float32).square()
            return gather_from_sequence_parallel_region(squares) if self.sequence_parallel else squares

    def policy_loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        temperature: float,
        old_log_probs: Tensor,
        advantages: Tensor,
        loss_weights: Tensor,
        ref_log_probs: Tensor | None,
    ) -> PPOLoss:
        """The weighted clipped loss, a sum over tokens; clip bounds and coefficients are those of `algorithm`."""
        return self._ppo_loss(
            *self._inputs(hidden),
            labels,
            old_log_probs,
            advantages,
            loss_weights,
            clip_ratio_low=self.algorithm.clip_ratio_low,
            clip_ratio_high=self.algorithm.clip_ratio_high,
            clip_ratio_dual=self.algorithm.clip_ratio_dual,
            ref_log_probs=ref_log_probs,
            kl_coef=self.algorithm.kl_coef,
            entropy_coef=self.algorithm.entropy_coef,
            temperature=temperature,
        )

    def _inputs(self, hidden: Tensor) -> tuple[Tensor, ...]:
        chunk = self.policy.chunks[-1]
        if self.level == "logits":
            return (chunk.logits(hidden).squeeze(1),)
        return hidden.squeeze(1), chunk.output_weight()
