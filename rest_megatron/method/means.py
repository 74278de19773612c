"""Means of values that belong together."""

import torch
from torch import Tensor


def mean_by(index: Tensor, values: Tensor, count: int) -> Tensor:
    """float64 [count]: the mean of the `values` [T] of each index; nan for one without values.

    index: int64 [T] in [0, count), what each value belongs to.
    """
    zeros = torch.zeros(count, dtype=torch.float64, device=values.device)
    sums = zeros.index_add(0, index, values.double())
    return sums / zeros.index_add(0, index, torch.ones_like(values, dtype=torch.float64))
