"""The gradient of log p_y and entropy with respect to one shard of the logits.

dx_v = (1 / tau) [ g 1(v = y) - p_v ((g + h H) + h log p_v) ], with g = dL/dlog p_y and h = dL/dH.
Every column needs the row's merged statistics and nothing else, so the backward pass has no collective.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tokens import MergedStats, Softmax, Tokens
from .compiled import row_function
from .exponent import exponent_floor, exponent_scale, row_exponent
from .rows import Rows


class RowConstants(NamedTuple):
    """What a row's columns need, each [N, 1]: a column gets e^z (constant + slope z / log 2), the label `target`."""

    row_max: Tensor
    constant: Tensor
    slope: Tensor | None
    target: Tensor


@torch.no_grad()
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
    moved = log_prob_grad != 0 if entropy_grad is None else (log_prob_grad != 0) | (entropy_grad != 0)
    moved &= tokens.labels != tokens.ignore_index
    if upstream is not None:
        log_prob_grad = log_prob_grad * upstream
        entropy_grad = None if entropy_grad is None else entropy_grad * upstream
    grad = logits if inplace else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    num_columns = softmax.shard.num_columns
    grad[..., num_columns:] = 0
    Rows(grad, (~moved).nonzero().squeeze(-1)).zero_()
    numbers = moved.nonzero().squeeze(-1)
    if num_columns > 0 and len(numbers) > 0:
        constants = _row_constants(numbers, softmax.temperature, merged, log_prob_grad, entropy_grad)
        source, out = (Rows(tensor[..., :num_columns], numbers) for tensor in (logits, grad))
        _write_columns(source, out, constants, softmax.temperature)
        _write_labels(out, tokens.labels[numbers] - softmax.shard.start, constants.target)
    return grad


def _write_columns(source: Rows, out: Rows, constants: RowConstants, temperature: float) -> None:
    """Write the gradient of every column as if it were not the label. `source` and `out` may be the same rows."""
    scale = exponent_scale(temperature, constants.row_max.dtype)
    compute = row_function(overwrite_with_gradient, source)
    for part, values in source.chunks(compute.chunk_elements):
        own = [None if tensor is None else tensor[part].clone() for tensor in constants[:3]]
        compute.run(values, scale, *own)
        out.write(part, values)


def overwrite_with_gradient(
    values: Tensor, scale: Tensor, row_max: Tensor, constant: Tensor, slope: Tensor | None
) -> None:
    """values = e^z (constant + slope z / log 2), rounded once, for the rows `values` [n, V]; see `RowConstants`."""
    exponent = row_exponent(values.to(scale.dtype), row_max, scale)
    exp = exponent.exp2()
    values.copy_(exp.mul_(constant) if slope is None else exponent.mul_(slope).add_(constant).mul_(exp))


def _write_labels(out: Rows, column: Tensor, target: Tensor) -> None:
    """Write the gradient `target` [N, 1] of the labels; `column` [N] counts from the shard's first."""
    owned = (column >= 0) & (column < out.tensor.shape[-1])
    index = tuple(part[owned] for part in out.index(column))
    out.tensor[index] = target.squeeze(-1)[owned].to(out.tensor.dtype)


def _row_constants(
    numbers: Tensor, temperature: float, merged: MergedStats, log_prob_grad: Tensor, entropy_grad: Tensor | None
) -> RowConstants:
    """The constants of the listed rows [N]. 1 - p_y = R / S, so the label's gradient keeps its digits near p_y = 1."""
    listed = (vector[numbers].unsqueeze(-1) for vector in (*merged[:5], log_prob_grad))
    row_max, exp_sum, rest, log_probs, entropy, g = listed
    scale = -1 / (temperature * exp_sum)
    constant, slope = scale * g, None
    target = g * (rest / exp_sum)
    if entropy_grad is not None:
        h = entropy_grad[numbers].unsqueeze(-1)
        # p = 0 makes log p = -inf; the floor keeps their product at 0.
        log_probs = log_probs.clamp(min=exponent_floor(log_probs.dtype))
        target = target - h * log_probs.exp() * (entropy + log_probs)
        constant = constant + scale * h * (entropy - exp_sum.log())
        slope = scale * h * math.log(2)
    return RowConstants(row_max, constant, slope, target / temperature)
