"""Log-probabilities, entropy and the clipped policy loss on vocabulary-parallel logits.

Each rank of a tensor-parallel group holds some columns of the logits. It reduces its rows to five numbers per token,
the ranks exchange those once, and every rank then knows the whole softmax. The results are replicated: bitwise equal
on all ranks. The gradient on each rank is that of the loss with respect to its own columns; it needs no reduction
and no factor of the group's size.
"""

import torch.distributed as dist
from torch import Tensor

from .arguments import labelled_tokens, ppo_vectors, softmax_of
from .autograd import Passes, PPOLossFunction, TokenStatsFunction
from .backend import BackendName, choose_backend
from .checks import check_inplace, check_logits
from .results import LogProbEntropy, PPOLoss, named_sums, per_token
from .settings import PPOSettings
from .tokens import compute_dtype


def vocab_parallel_logprob_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    tp_group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    ignore_index: int = -100,
    entropy_requires_grad: bool = False,
    return_collision: bool = False,
    inplace_backward: bool = False,
    backend: BackendName = "auto",
) -> LogProbEntropy:
    """log p_y, entropy H and collision sum p^2 of softmax(logits / temperature), for every token.

    logits: [..., V_local] bfloat16, float16, float32 or float64, last stride 1; this rank's columns. Sums are float32
        (float64 for float64). Columns may be -inf. The leading dimensions may have any two strides.
    labels: [...] int64, ids of the whole vocabulary, equal on all ranks. `ignore_index` marks rows that are not
        read: log-prob, entropy and collision 0, gradient exactly 0.
    tp_group: the ranks that share the vocabulary, in the order of their columns; None: this rank has all of it. Every
        rank must call, even with zero tokens.
    vocab_size: ids at or beyond it are padding and hold no probability; None: no padding.
    vocab_start: the id of this rank's first column. None: the ranks exchange their sizes and check them, which waits
        for the device. Given (with vocab_size): they trust it, and nothing here waits.
    entropy_requires_grad: make entropy differentiable too; log_probs always is. Double backward is not supported.
    return_collision: fill `collision` (never differentiable).
    inplace_backward: write the gradient over the logits, which saves their size in memory; a second backward raises
        RuntimeError. Otherwise logits are never changed.
    backend: "triton", "torch" or "auto" (see `backend.choose_backend`).

    One read of the logits forward (2 bytes each in bfloat16), one read and one write backward. Log-prob and gradient
    keep their relative precision when p_y nears 1.
    Raises TypeError for a dtype; ValueError for a shape, stride, temperature, vocab_size or label out of range (on a
    GPU, where looking would wait for the device, such a label gives not-a-number).
    """
    check_logits(logits, labels, temperature)
    check_inplace(logits, inplace_backward)
    softmax = softmax_of(logits.shape[-1], labels, temperature, tp_group, vocab_size, vocab_start)
    tokens = labelled_tokens(labels, ignore_index, softmax)
    passes = Passes(choose_backend(backend, logits.dtype, logits.device), softmax, inplace_backward)
    values = TokenStatsFunction.apply(logits, tokens, passes, entropy_requires_grad, return_collision)
    return per_token(labels.shape, *values)


def vocab_parallel_ppo_loss(
    logits: Tensor,
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
    vocab_size: int | None = None,
    vocab_start: int | None = None,
    ignore_index: int = -100,
    inplace_backward: bool = False,
    backend: BackendName = "auto",
) -> PPOLoss:
    """loss = sum_t loss_weights_t (l_t + kl_coef KL_t - entropy_coef H_t), see `reference.ppo_loss`.

    `loss_weights` already hold mask, token weight, any importance-sampling weight and normaliser, so the sum needs no
    division. Rows with weight 0 (or label `ignore_index`) are not read: their log_probs and entropy are 0, their
    gradient is exactly 0.
    old_log_probs, advantages, loss_weights, ref_log_probs: floating point of the labels' shape, equal on all ranks
    of `tp_group`, constants for autograd. The other arguments are those of `vocab_parallel_logprob_entropy`.

    metrics: sums over the tokens that were read, 0-dim on the logits' device, in the loss's dtype, to be added over
    micro-batches and data-parallel ranks and divided by num_tokens:
        num_tokens; ratio, entropy; clipped: tokens whose ratio a clip holds, so that they have no policy gradient;
        clipped_low: those of them with A < 0 (held at 1 - clip_ratio_low or at the dual clip);
        approx_kl: k3 estimate of KL(old || policy), e^d - 1 - d with d = log_probs - old_log_probs.

    Raises TypeError for a dtype; ValueError for a shape, stride or value out of range.
    """
    check_logits(logits, labels, temperature)
    check_inplace(logits, inplace_backward)
    settings = PPOSettings(clip_ratio_low, clip_ratio_high, clip_ratio_dual, kl_coef, entropy_coef)
    dtype = compute_dtype(logits.dtype)
    weights, inputs = ppo_vectors(labels, dtype, loss_weights, old_log_probs, advantages, ref_log_probs, settings)
    softmax = softmax_of(logits.shape[-1], labels, temperature, tp_group, vocab_size, vocab_start)
    tokens = labelled_tokens(labels, ignore_index, softmax, weights)
    passes = Passes(choose_backend(backend, logits.dtype, logits.device), softmax, inplace_backward)
    loss, log_probs, entropy, sums = PPOLossFunction.apply(logits, tokens, passes, inputs, settings)
    return PPOLoss(loss, log_probs.view(labels.shape), entropy.view(labels.shape), named_sums(sums))
