"""Gradient sums DeepSpeed does not make, and the marks that let its global norm count each parameter once.

DeepSpeed reduces over data-parallel ranks only. Three kinds of parameter need more before that:
- query/key norms are replicated over tensor-parallel ranks, but each rank's heads give only part of the gradient;
- with sequence parallelism every norm sees only its rank's part of the sequence;
- a tied embedding lives on the first and the last pipeline stage, and each copy has half of the gradient.
"""

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from megatron.core import parallel_state
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from rest_megatron.actor.optimizer_state import ZeroOptimizer
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.model import Policy

COUNTED_ELSEWHERE = "ds_pipe_replicated"
"""DeepSpeed's name of the mark on a copy of a parameter that its global norm skips."""


def accumulated_gradient(optimizer: ZeroOptimizer, parameter: nn.Parameter) -> Tensor | None:
    """The gradient DeepSpeed has accumulated for `parameter` and not yet reduced; None if it got none."""
    if isinstance(optimizer, BF16_Optimizer):
        return getattr(parameter, "_hp_grad", None)
    return optimizer.get_gradient_for_reduction(parameter)


def tied_copy(policy: Policy, parallel: Parallel) -> nn.Parameter | None:
    """This rank's copy of an embedding tied across the two ends of a pipeline; None where there is no such copy."""
    at_an_end = parallel.is_first_stage or parallel.is_last_stage
    if not (policy.hf.tie_word_embeddings and parallel.pp_size > 1 and at_an_end):
        return None
    return policy.chunks[0 if parallel.is_first_stage else -1].shared_embedding_or_output_weight()


def mark_tied_copy(policy: Policy, parallel: Parallel) -> None:
    """Tell DeepSpeed's norm to skip the last stage's copy of a tied embedding. Call before the engine is built."""
    copy = tied_copy(policy, parallel)
    if copy is not None and parallel.is_last_stage:
        setattr(copy, COUNTED_ELSEWHERE, True)


@torch.no_grad()
def copy_tied_embedding(policy: Policy, parallel: Parallel) -> None:
    """Overwrite the last stage's copy of a tied embedding with the first stage's. Call after every step.

    Both copies are updated with the same gradient up to rounding: it lies at another place of each stage's buffers, and
    a sum over three or more data-parallel ranks may then add in another order.
    """
    copy = tied_copy(policy, parallel)
    if copy is not None:
        group = parallel_state.get_embedding_group()
        dist.broadcast(copy.data, dist.get_global_rank(group, 0), group=group)


def needs_tensor_parallel_sum(name: str, parameter: nn.Parameter) -> bool:
    """Whether each tensor-parallel rank holds only part of this replicated parameter's gradient."""
    return "q_layernorm" in name or "k_layernorm" in name or getattr(parameter, "sequence_parallel", False)


def sum_replicated_gradients(policy: Policy, optimizer: ZeroOptimizer, parallel: Parallel) -> None:
    """Add up the partial gradients listed above, in place, in one all-reduce per group."""
    if parallel.tp_size > 1:
        partial = [
            grad
            for name, parameter in policy.named_parameters()
            if needs_tensor_parallel_sum(name, parameter)
            and (grad := accumulated_gradient(optimizer, parameter)) is not None
        ]
        if partial:
            flat = _flatten_dense_tensors(partial)
            dist.all_reduce(flat, group=parallel.tp_group)
            for grad, total in zip(partial, _unflatten_dense_tensors(flat, partial), strict=True):
                grad.copy_(total)
    copy = tied_copy(policy, parallel)
    if copy is not None:
        dist.all_reduce(accumulated_gradient(optimizer, copy), group=parallel_state.get_embedding_group())


def spoil_unless_finite(policy: Policy, optimizer: ZeroOptimizer, loss: Tensor) -> None:
    """Make a gradient non-finite when `loss` (0-dim) is, so that every rank skips the step.

    Where the clip holds a token's ratio its derivative is 0, even if the advantage and so the loss are infinite: the
    gradients alone need not show it.
    """
    gradients = (accumulated_gradient(optimizer, parameter) for parameter in policy.parameters())
    next(gradient for gradient in gradients if gradient is not None).add_(0.0 * loss)
