"""The gradient of log p_y and entropy with respect to one shard of the logits.

dx_v = (1 / tau) [ g 1(v = y) - p_v ((g + h H) + h log p_v) ], with g = dL/dlog p_y and h = dL/dH.
Every column needs the row's merged statistics and nothing else, so the backward pass has no collective.
"""

import torch
from torch import Tensor

from .rows import compute_dtype, row_chunks, rows_per_chunk
from .stats import MergedStats, exponent_floor


def shard_logits_gradient(
    logits: Tensor,
    num_columns: int,
    rows: Tensor,
    local_labels: Tensor,
    merged: MergedStats,
    log_prob_grad: Tensor,
    entropy_grad: Tensor | None,
    temperature: float,
) -> Tensor:
    """The gradient, of the shape and dtype of `logits` [..., V_local]; sums in float32 and rounds once.

    Only the first `num_columns` columns belong to the vocabulary; the rest are padding and get 0. `rows`,
    `local_labels` and `merged` describe the listed rows, as in `shard_softmax_stats`; the upstream gradients g and h
    are [N], h may be None. A row that is not listed, or whose g and h are 0, is not read and gets exactly 0.
    """
    active = log_prob_grad != 0 if entropy_grad is None else (log_prob_grad != 0) | (entropy_grad != 0)
    if not active.all():
        rows, local_labels, log_prob_grad = rows[active], local_labels[active], log_prob_grad[active]
        merged = MergedStats(*(tensor[active] for tensor in merged))
        entropy_grad = None if entropy_grad is None else entropy_grad[active]
    everything = len(rows) == logits.shape[:-1].numel() and num_columns == logits.shape[-1]
    allocate = torch.empty if everything else torch.zeros
    grad = allocate(logits.shape, dtype=logits.dtype, device=logits.device)
    if num_columns == 0 or len(rows) == 0:
        return grad
    owned = (local_labels >= 0) & (local_labels < num_columns)
    columns = local_labels.clamp(0, num_columns - 1).unsqueeze(-1)
    target = _target_gradient(merged, log_prob_grad, entropy_grad, temperature)
    flat_grad = grad.view(-1, logits.shape[-1])[:, :num_columns]
    for part, chunk in _gradient_chunks(
        logits[..., :num_columns], rows, merged, log_prob_grad, entropy_grad, temperature
    ):
        column = columns[part]
        chunk.scatter_(1, column, torch.where(owned[part], target[part], chunk.gather(1, column).squeeze(1))[:, None])
        if everything:
            flat_grad[part] = chunk
        else:
            flat_grad.index_copy_(0, rows[part], chunk.to(grad.dtype))
    return grad


def _gradient_chunks(logits, rows, merged, log_prob_grad, entropy_grad, temperature):
    """Yield (part, chunk): the gradient of `rows[part]` as if no column were the label, in a buffer that is reused.

    With z = (x - M) / tau, log p = z - log S. The row constants are gathered, so that a column costs
    e^z * (constant + slope * z).
    """
    dtype = compute_dtype(logits.dtype)
    scale = -1 / (temperature * merged.exp_sum)
    constant, slope = scale * log_prob_grad, None
    if entropy_grad is not None:
        constant = scale * (log_prob_grad + entropy_grad * (merged.entropy - merged.exp_sum.log()))
        slope = (scale * entropy_grad).unsqueeze(-1)
    constant, row_max = constant.unsqueeze(-1), merged.row_max.unsqueeze(-1)
    shape = (min(len(rows), rows_per_chunk(logits)), logits.shape[-1])
    exponents, exps = torch.empty(2, *shape, dtype=dtype, device=logits.device)
    for part, values in row_chunks(logits, rows):
        exponent, exp = exponents[: len(values)], exps[: len(values)]
        torch.sub(values, row_max[part], out=exponent)
        exponent.mul_(1 / temperature)
        if slope is None:
            yield part, torch.exp(exponent, out=exp).mul_(constant[part])
        else:
            exponent.clamp_(min=exponent_floor(dtype))
            torch.exp(exponent, out=exp)
            yield part, exponent.mul_(slope[part]).add_(constant[part]).mul_(exp)


def _target_gradient(merged: MergedStats, log_prob_grad: Tensor, entropy_grad: Tensor | None, temperature: float):
    """The gradient of the label's own logit. 1 - p_y comes from expm1, so it keeps its digits when p_y is near 1."""
    grad = -log_prob_grad * torch.expm1(merged.log_probs)
    if entropy_grad is not None:
        # p = 0 makes log p = -inf; the floor keeps their product at 0.
        log_probs = merged.log_probs.clamp(min=exponent_floor(merged.log_probs.dtype))
        grad = grad - log_probs.exp() * entropy_grad * (merged.entropy + log_probs)
    return grad / temperature
