"""Where the rows of logits with any leading shape lie in memory."""

from typing import NamedTuple

from torch import Tensor


class RowLayout(NamedTuple):
    """Row r starts (r // inner_rows) * outer_stride + (r % inner_rows) * inner_stride elements after the first."""

    inner_rows: int
    outer_stride: int
    inner_stride: int


def row_layout(logits: Tensor) -> RowLayout:
    """The layout of `logits` [..., V]; rows are counted over the flattened leading shape.

    Raises ValueError when two strides do not describe it.
    """
    groups: list[tuple[int, int]] = []
    for size, stride in zip(reversed(logits.shape[:-1]), reversed(logits.stride()[:-1]), strict=True):
        if size == 1:
            continue
        if groups and stride == groups[-1][0] * groups[-1][1]:
            groups[-1] = (groups[-1][0] * size, groups[-1][1])
        else:
            groups.append((size, stride))
    if len(groups) > 2:
        raise ValueError(
            f"logits of shape {list(logits.shape)} have the strides {list(logits.stride())}: their leading dimensions "
            f"need {len(groups)} strides, two at most are supported. Call .contiguous() on them."
        )
    if len(groups) < 2:
        return RowLayout(1, groups[0][1] if groups else 0, 0)
    (inner_rows, inner_stride), (_, outer_stride) = groups
    return RowLayout(inner_rows, outer_stride, inner_stride)
