"""Reading logits a few rows at a time, so that no full-precision copy of them ever exists."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements per chunk: on a CPU the working set stays in cache; elsewhere a launch must carry enough work.
CPU_CHUNK_ELEMENTS = 1 << 18
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are made in: float64 for float64 logits, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_per_chunk(logits: Tensor) -> int:
    """How many rows of `logits` [..., V] one chunk holds; at least one."""
    elements = CPU_CHUNK_ELEMENTS if logits.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(1, elements // max(1, logits.shape[-1]))


def row_chunks(logits: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (part, values): `values` [n, V] are the logits of `rows[part]`, in the logits' dtype.

    logits [..., V] with any leading shape and strides. `rows` [N] int64 are increasing row numbers, counted over the
    flattened leading shape; rows that are not listed are not read.
    """
    leading_shape = logits.shape[:-1]
    step = rows_per_chunk(logits)
    flat = flat_view(logits) if len(rows) == leading_shape.numel() else None
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        if flat is not None:
            yield part, flat[part]
        else:
            yield part, logits[torch.unravel_index(rows[part], leading_shape)]


def flat_view(logits: Tensor) -> Tensor | None:
    """`logits` [..., V] as a view [T, V]; None where its strides allow none."""
    try:
        return logits.view(-1, logits.shape[-1])
    except RuntimeError:
        return None
