"""Contestants in plain torch, written here: what one writes first, and the common eager vocabulary-parallel way."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .registry import Registry
from .workload import Batch, policy_loss


def add_baselines(registry: Registry) -> None:
    """Put them into `registry`."""

    @registry.contestant("torch log_softmax", "logits", "PPO + entropy, weights; no TP")
    def naive(batch: Batch) -> Tensor:
        return _naive_loss(batch, batch.logits)

    @registry.contestant("torch log_softmax", "hidden", "PPO + entropy, weights; no TP")
    def naive_linear(batch: Batch) -> Tensor:
        return _naive_loss(batch, F.linear(batch.hidden, batch.weight))

    @registry.contestant("torch log_softmax", "statistics", "log p + entropy; no TP")
    def naive_statistics(batch: Batch) -> tuple[Tensor, Tensor]:
        return _naive_statistics(batch, batch.logits)

    @registry.contestant("eager vocab-parallel", "logits", "PPO + entropy, weights, TP")
    def eager(batch: Batch) -> Tensor:
        logits = batch.logits.float().div_(batch.temperature)
        log_probs, entropy = _EagerVocabParallel.apply(logits, batch.labels, batch.group)
        return policy_loss(batch, log_probs, entropy)


def _naive_statistics(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(logits.float() / batch.temperature, dim=-1)
    log_probs = log_p.gather(-1, batch.labels.unsqueeze(-1)).squeeze(-1)
    return log_probs, -(log_p.exp() * log_p).sum(-1)


def _naive_loss(batch: Batch, logits: Tensor) -> Tensor:
    return policy_loss(batch, *_naive_statistics(batch, logits))


class _EagerVocabParallel(torch.autograd.Function):
    """Log-prob and entropy of float32 logits: a whole softmax is made and kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
        start = dist.get_rank(group) * logits.shape[-1]
        row_max = logits.amax(-1, keepdim=True)
        dist.all_reduce(row_max, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - row_max
        local = labels - start
        owned = (local >= 0) & (local < logits.shape[-1])
        local = local.where(owned, 0).unsqueeze(-1)
        target = shifted.gather(-1, local).squeeze(-1) * owned
        dist.all_reduce(target, group=group)
        probs = shifted.exp()
        total = probs.sum(-1, keepdim=True)
        dist.all_reduce(total, group=group)
        probs.div_(total)
        mean = (probs * shifted).sum(-1, keepdim=True)
        dist.all_reduce(mean, group=group)
        log_total = total.log()
        ctx.save_for_backward(probs, shifted, mean, local, owned)
        return target - log_total.squeeze(-1), (log_total - mean).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, log_prob_grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor, None, None]:
        probs, shifted, mean, local, owned = ctx.saved_tensors
        grad = probs * (shifted - mean) * -entropy_grad.unsqueeze(-1)
        grad -= probs * log_prob_grad.unsqueeze(-1)
        grad.scatter_add_(-1, local, (log_prob_grad * owned).unsqueeze(-1))
        return grad, None, None
