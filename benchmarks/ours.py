"""The contestants of this project, and the matrix products that bound the fused linear loss from below."""

from types import ModuleType

import torch
from torch import Tensor

from .registry import Registry
from .workload import SPARSE, SPARSE_NOTE, Batch


def add_ours(registry: Registry) -> None:
    """Put them into `registry`. At each level the one called "ours" is what the others are compared with."""
    add_logits_level(registry)
    add_hidden_level(registry)


def _shared(batch: Batch) -> dict:
    """What all functions are given. The group has one rank, so the collectives that peers pay for are paid here too."""
    columns = len(batch.weight) if batch.logits is None else batch.logits.shape[-1]
    return {"temperature": batch.temperature, "tp_group": batch.group, "vocab_size": columns, "vocab_start": 0}


def _keywords(batch: Batch) -> dict:
    return _shared(batch) | {
        "clip_ratio_low": batch.clip_ratio,
        "clip_ratio_high": batch.clip_ratio,
        "entropy_coef": batch.entropy_coef,
    }


def _vectors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.labels, batch.old_log_probs, batch.advantages, batch.loss_weights


def add_logits_level(registry: Registry) -> None:
    """`vocab_parallel_logprob_entropy` without gradients and `vocab_parallel_ppo_loss`."""
    does = "PPO + entropy, weights, TP"

    @registry.contestant("ours", "statistics", "log p + entropy, TP; no gradient", modules=("rest_kernels",))
    def statistics(batch: Batch, kernels: ModuleType) -> tuple[Tensor, Tensor]:
        result = kernels.vocab_parallel_logprob_entropy(batch.logits, batch.labels, **_shared(batch))
        return result.log_probs, result.entropy

    @registry.contestant("ours", "logits", does, modules=("rest_kernels",))
    def ours(batch: Batch, kernels: ModuleType) -> Tensor:
        return kernels.vocab_parallel_ppo_loss(batch.logits, *_vectors(batch), **_keywords(batch)).loss

    @registry.contestant("ours, in place", "logits", does, modules=("rest_kernels",))
    def in_place(batch: Batch, kernels: ModuleType) -> Tensor:
        keywords = _keywords(batch) | {"inplace_backward": True}
        return kernels.vocab_parallel_ppo_loss(batch.logits, *_vectors(batch), **keywords).loss

    sparse = f"{does}; {SPARSE_NOTE}"
    registry.contestant(f"ours, f={SPARSE}", "logits", sparse, modules=("rest_kernels",), fraction=SPARSE)(in_place)


def add_hidden_level(registry: Registry) -> None:
    """`linear_ppo_loss`, with all and with some of the tokens, beside its three matrix products alone."""
    does = "PPO + entropy, weights, TP"

    @registry.contestant("ours", "hidden", does, modules=("rest_kernels",))
    def linear(batch: Batch, kernels: ModuleType) -> Tensor:
        return kernels.linear_ppo_loss(batch.hidden, batch.weight, *_vectors(batch), **_keywords(batch)).loss

    sparse = f"{does}; {SPARSE_NOTE}"
    registry.contestant(f"ours, f={SPARSE}", "hidden", sparse, modules=("rest_kernels",), fraction=SPARSE)(linear)

    @registry.contestant("three GEMMs alone", "hidden", "no loss: X W^T, dX, dW with a given dlogits")
    def three_gemms(batch: Batch) -> None:
        with torch.no_grad():
            logits = batch.hidden @ batch.weight.T
            torch.mm(logits, batch.weight)
            torch.mm(logits.T, batch.hidden)
