"""From the arguments of the public functions to what the passes take."""

import torch
import torch.distributed as dist
from torch import Tensor

from .checks import check_labels, check_token_vectors
from .settings import PPOSettings
from .shard import vocab_shard
from .tokens import PPOInputs, Softmax, Tokens


def softmax_of(
    local_size: int,
    labels: Tensor,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int | None,
    vocab_start: int | None,
) -> Softmax:
    """The softmax over a vocabulary of which this rank holds `local_size` columns; raises as `shard.vocab_shard`."""
    shard = vocab_shard(
        local_size,
        labels.numel(),
        vocab_size=vocab_size,
        vocab_start=vocab_start,
        group=tp_group,
        device=labels.device,
    )
    return Softmax(shard, float(temperature))


def labelled_tokens(labels: Tensor, ignore_index: int, softmax: Softmax, loss_weights: Tensor | None = None) -> Tokens:
    """Tokens of `labels` [...]. Raises ValueError for a label out of range, see `checks.check_labels`."""
    tokens = Tokens(labels.reshape(-1).contiguous(), ignore_index, loss_weights)
    check_labels(tokens, softmax.shard.vocab_size)
    return tokens


def ppo_vectors(
    labels: Tensor,
    dtype: torch.dtype,
    loss_weights: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    ref_log_probs: Tensor | None,
    settings: PPOSettings,
) -> tuple[Tensor, PPOInputs]:
    """(loss_weights, inputs), each [T] in `dtype`. Raises for wrong dtypes and shapes and a missing reference."""
    check_token_vectors(
        labels,
        old_log_probs=old_log_probs,
        advantages=advantages,
        loss_weights=loss_weights,
        ref_log_probs=ref_log_probs,
    )
    if settings.kl_coef != 0 and ref_log_probs is None:
        raise ValueError(f"kl_coef is {settings.kl_coef} but ref_log_probs is None; pass them, or set kl_coef to 0.")
    reference = None if ref_log_probs is None or settings.kl_coef == 0 else _constant(ref_log_probs, dtype)
    inputs = PPOInputs(_constant(old_log_probs, dtype), _constant(advantages, dtype), reference)
    return _constant(loss_weights, dtype), inputs


def _constant(vector: Tensor, dtype: torch.dtype) -> Tensor:
    return vector.detach().reshape(-1).to(dtype).contiguous()
