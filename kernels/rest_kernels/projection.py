"""The LM head a few rows at a time: logits of one chunk exist at once, and only for rows that count."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from .tokens import compute_dtype

# On a CPU the weight's gradient is summed in float32 from copies of this many columns.
CPU_BLOCK_COLUMNS = 4096


def chunks(hidden: Tensor, weight: Tensor, chunk_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield (part, logits): logits [n, V_local] = hidden[part] @ weight^T, in one buffer that is used again.

    hidden [N, H], weight [V_local, H]. The caller may overwrite the logits.
    """
    num_rows = hidden.shape[0]
    buffer = hidden.new_empty(min(chunk_size, num_rows), weight.shape[0])
    for start in range(0, num_rows, chunk_size):
        part = slice(start, min(start + chunk_size, num_rows))
        yield part, torch.mm(hidden[part], weight.t(), out=buffer[: part.stop - start])


class ProjectionGradient:
    """The gradients of `hidden` [N, H] and `weight` [V_local, H], chunk by chunk from those of the logits.

    `hidden` is in its own dtype (each row is made once); `weight` is summed in float32 (float64 for float64), because
    the rounding errors of many chunks would add up. Either may be left out (None).
    """

    def __init__(self, hidden: Tensor, weight: Tensor, needs_hidden: bool, needs_weight: bool) -> None:
        self._inputs = hidden, weight
        dtype = compute_dtype(weight.dtype)
        self.hidden = torch.empty_like(hidden) if needs_hidden else None
        self.weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if needs_weight else None

    def add(self, part: slice, logits_grad: Tensor) -> None:
        """Take in the gradient [n, V_local] of the logits of the rows `part`."""
        hidden, weight = self._inputs
        if self.hidden is not None:
            torch.mm(logits_grad, weight, out=self.hidden[part])
        if self.weight is not None:
            _add_product(self.weight, logits_grad, hidden[part])


def _add_product(total: Tensor, logits_grad: Tensor, hidden: Tensor) -> None:
    """total += logits_grad^T @ hidden, with `total` in float32 whatever the factors are."""
    if total.dtype == hidden.dtype:
        total.addmm_(logits_grad.t(), hidden)
    elif total.device.type == "cuda":
        torch.addmm(total, logits_grad.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        hidden = hidden.to(total.dtype)
        blocks = zip(total.split(CPU_BLOCK_COLUMNS), logits_grad.split(CPU_BLOCK_COLUMNS, dim=1), strict=True)
        for block, columns in blocks:
            block.addmm_(columns.t().to(total.dtype), hidden)


def gather_sequence(hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The whole sequence [s, ...] from each rank's part [s / tp, ...], in rank order."""
    whole = hidden.new_empty(hidden.shape[0] * group.size(), *hidden.shape[1:])
    dist.all_gather_into_tensor(whole, hidden.contiguous(), group=group)
    return whole


def sum_over_shards(grad: Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> Tensor:
    """Add up what each vocabulary shard gives to the gradient [s, ...] of the hidden states.

    With sequence parallelism each rank gets its own part, [s / tp, ...].
    """
    if group is None:
        return grad
    if not sequence_parallel:
        dist.all_reduce(grad, group=group)
        return grad
    part = grad.new_empty(grad.shape[0] // group.size(), *grad.shape[1:])
    dist.reduce_scatter_tensor(part, grad, group=group)
    return part
