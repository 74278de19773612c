"""Launches: tensors in, tensors out, on the tensors' own device. Four in a training step, none waits for the device."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import triton
from torch import Tensor

from ..layout import row_layout
from ..settings import PPOSettings
from ..tokens import NUM_STATS, SUMS, MergedStats, PPOInputs, PPORows, Softmax, Tokens
from .gradient import logits_gradient_kernel
from .merge import merge_kernel
from .ppo import ppo_rows_kernel
from .stats import softmax_stats_kernel

LOG2_E = math.log2(math.e)
# A block of 32 columns per thread: few enough for the registers, enough to spread what a block costs once.
NUM_WARPS = 4
NUM_THREADS = 32 * NUM_WARPS
# Triton 3.10 fuses a multiplication and an addition only when told to.
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
BLOCK_COLUMNS = 4096
VECTOR_BYTES = 16
BLOCK_TOKENS = 128


def is_interpreted() -> bool:
    """Whether Triton was imported with TRITON_INTERPRET=1, so that kernels run on CPU tensors, slowly."""
    return not isinstance(softmax_stats_kernel, triton.JITFunction)


def block_columns(num_columns: int) -> int:
    """Columns a program reads at a time: a power of two, no more than a narrow shard can use."""
    return max(1024, min(BLOCK_COLUMNS, triton.next_power_of_2(num_columns)))


def softmax_stats(logits: Tensor, tokens: Tokens, softmax: Softmax, collision: bool) -> Tensor:
    """See `backend.Backend.softmax_stats`."""
    num_tokens = tokens.labels.numel()
    stats = torch.empty(num_tokens, NUM_STATS, dtype=torch.float32, device=logits.device)
    if num_tokens == 0:
        return stats
    vector = VECTOR_BYTES // logits.element_size()
    with _on(logits.device):
        softmax_stats_kernel[(num_tokens,)](
            logits,
            tokens.labels,
            tokens.loss_weights,
            stats,
            softmax.shard.num_columns,
            *row_layout(logits),
            softmax.shard.start,
            tokens.ignore_index,
            LOG2_E / softmax.temperature,
            HAS_WEIGHTS=tokens.loss_weights is not None,
            COLLISION=collision,
            VECTORS=block_columns(softmax.shard.num_columns) // (NUM_THREADS * vector),
            THREADS=NUM_THREADS,
            WIDTH=vector,
            **OPTIONS,
        )
    return stats


def merge_stats(stats: Tensor, tokens: Tokens, softmax: Softmax) -> MergedStats:
    """See `backend.Backend.merge_stats`."""
    num_shards, num_tokens, _ = stats.shape
    merged = MergedStats(*torch.empty(len(MergedStats._fields), num_tokens, dtype=torch.float32, device=stats.device))
    if num_tokens:
        with _on(stats.device):
            merge_kernel[(triton.cdiv(num_tokens, BLOCK_TOKENS),)](
                stats,
                tokens.labels,
                *merged,
                num_tokens,
                num_shards,
                softmax.shard.vocab_size,
                tokens.ignore_index,
                1 / softmax.temperature,
                BLOCK=BLOCK_TOKENS,
                **OPTIONS,
            )
    return merged


def ppo_rows(stats: Tensor, tokens: Tokens, softmax: Softmax, inputs: PPOInputs, settings: PPOSettings) -> PPORows:
    """See `backend.Backend.ppo_rows`."""
    num_shards, num_tokens, _ = stats.shape
    empty = partial(torch.empty, dtype=torch.float32, device=stats.device)
    row_max, exp_sum, rest, log_probs, entropy = empty(5, num_tokens)
    merged = MergedStats(row_max, exp_sum, rest, log_probs, entropy, collision=None)
    log_prob_grad = empty(num_tokens)
    entropy_grad = empty(num_tokens) if settings.entropy_coef != 0 else None
    num_programs = triton.cdiv(num_tokens, BLOCK_TOKENS)
    sums = empty(num_programs, len(SUMS))
    if num_tokens:
        with _on(stats.device):
            ppo_rows_kernel[(num_programs,)](
                stats,
                tokens.labels,
                tokens.loss_weights,
                *inputs,
                *merged[:5],
                log_prob_grad,
                entropy_grad,
                sums,
                num_tokens,
                num_shards,
                softmax.shard.vocab_size,
                tokens.ignore_index,
                1 / softmax.temperature,
                settings.clip_ratio_low,
                settings.clip_ratio_high,
                settings.upper_bound_of_negative,
                settings.kl_coef,
                settings.entropy_coef,
                HAS_KL=settings.kl_coef != 0,
                HAS_ENTROPY=entropy_grad is not None,
                BLOCK=BLOCK_TOKENS,
                **OPTIONS,
            )
    return PPORows(merged, log_prob_grad, entropy_grad, sums.sum(0))


def logits_gradient(
    logits: Tensor,
    tokens: Tokens,
    softmax: Softmax,
    merged: MergedStats,
    log_prob_grad: Tensor,
    entropy_grad: Tensor | None,
    upstream: Tensor | None,
    inplace: bool,
) -> Tensor:
    """See `backend.Backend.logits_gradient`."""
    grad = logits if inplace else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    num_tokens = tokens.labels.numel()
    if num_tokens == 0:
        return grad
    with _on(logits.device):
        logits_gradient_kernel[(num_tokens,)](
            logits,
            tokens.labels,
            log_prob_grad,
            entropy_grad,
            upstream,
            *merged[:5],
            grad,
            softmax.shard.num_columns,
            logits.shape[-1],
            *row_layout(logits),
            *row_layout(grad),
            softmax.shard.start,
            tokens.ignore_index,
            LOG2_E / softmax.temperature,
            1 / softmax.temperature,
            HAS_ENTROPY=entropy_grad is not None,
            HAS_UPSTREAM=upstream is not None,
            BLOCK=block_columns(logits.shape[-1]),
            **OPTIONS,
        )
    return grad


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device; make it the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
