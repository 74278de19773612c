"""The same losses from hidden states: logits = hidden @ weight^T, one chunk of rows at a time.

Rows that do not count are dropped before the product, so the time and the memory of the LM head scale with the share
of answer tokens in a batch. One chunk of logits exists at a time instead of all of them; where the weight is trained,
its gradient in float32 comes on top.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .arguments import labelled_tokens, ppo_vectors, softmax_of
from .autograd import Passes
from .backend import BackendName, choose_backend
from .checks import check_linear
from .linear_autograd import Head, LinearPPOLossFunction, LinearTokenStatsFunction
from .results import LogProbEntropy, PPOLoss, named_sums, per_token
from .settings import PPOSettings
from .tokens import Softmax, compute_dtype


def linear_logprob_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    ignore_index: int = -100,
    entropy_requires_grad: bool = False,
    return_collision: bool = False,
    chunk_size: int = 4096,
    backend: BackendName = "auto",
) -> LogProbEntropy:
    """`vocab_parallel_logprob_entropy` of hidden @ weight^T.

    hidden: [..., H] bfloat16, float16, float32 or float64, equal on all ranks of `tp_group`; with `sequence_parallel`
        this rank's part of the first dimension, [s / tp, ..., H] (labels are whole, [s, ...]).
    weight: [V_local, H], of the same dtype: this rank's rows of the LM head.
    chunk_size: rows of logits that exist at once.
    The other arguments and what is raised are those of `vocab_parallel_logprob_entropy`. Finding the rows that count
    waits for the device.

    Without gradient: one matrix product and one read of the logits. With it the logits are made again in the backward
    pass: four products in all (`linear_ppo_loss` needs three). The gradient of `weight` is summed in float32; that of
    `hidden` is summed over `tp_group`.
    """
    check_linear(hidden, weight, labels, temperature, tp_group, sequence_parallel, chunk_size)
    softmax = softmax_of(weight.shape[0], labels, temperature, tp_group, vocab_size, vocab_start)
    tokens = labelled_tokens(labels, ignore_index, softmax)
    head = _head(hidden, softmax, backend, chunk_size, sequence_parallel)
    values = LinearTokenStatsFunction.apply(hidden, weight, tokens, head, entropy_requires_grad, return_collision)
    return per_token(labels.shape, *values)


def linear_ppo_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    *,
    clip_ratio_low: float = 0.2,
    clip_ratio_high: float = 0.2,
    clip_ratio_dual: float | None = None,
    ref_log_probs: Tensor | None = None,
    kl_coef: float = 0.0,
    entropy_coef: float = 0.0,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    ignore_index: int = -100,
    chunk_size: int = 4096,
    backend: BackendName = "auto",
) -> PPOLoss:
    """`vocab_parallel_ppo_loss` of hidden @ weight^T, with both gradients made in the forward pass: three products.

    `hidden`, `weight` and `chunk_size` are those of `linear_logprob_entropy`, the other arguments and the metrics
    those of `vocab_parallel_ppo_loss`. float16 is refused (TypeError): the logits' gradient is rounded before the
    factor of a loss scale is known, and would underflow.
    """
    check_linear(hidden, weight, labels, temperature, tp_group, sequence_parallel, chunk_size)
    if hidden.dtype == torch.float16:
        raise TypeError(
            "hidden is float16: linear_ppo_loss makes its gradients before the loss scale is known, so they would "
            "underflow. Use bfloat16, or vocab_parallel_ppo_loss on the logits."
        )
    settings = PPOSettings(clip_ratio_low, clip_ratio_high, clip_ratio_dual, kl_coef, entropy_coef)
    dtype = compute_dtype(hidden.dtype)
    weights, inputs = ppo_vectors(labels, dtype, loss_weights, old_log_probs, advantages, ref_log_probs, settings)
    softmax = softmax_of(weight.shape[0], labels, temperature, tp_group, vocab_size, vocab_start)
    tokens = labelled_tokens(labels, ignore_index, softmax, weights)
    head = _head(hidden, softmax, backend, chunk_size, sequence_parallel)
    loss, log_probs, entropy, sums = LinearPPOLossFunction.apply(hidden, weight, tokens, head, inputs, settings)
    return PPOLoss(loss, log_probs.view(labels.shape), entropy.view(labels.shape), named_sums(sums))


def _head(hidden: Tensor, softmax: Softmax, backend: BackendName, chunk_size: int, sequence_parallel: bool) -> Head:
    passes = Passes(choose_backend(backend, hidden.dtype, hidden.device), softmax, inplace_backward=True)
    return Head(passes, chunk_size, sequence_parallel, torch.is_grad_enabled())
