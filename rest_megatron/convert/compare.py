"""How the tensors of two checkpoints differ, read one pair at a time."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rest_megatron.convert.tensor_file import same_bits
from rest_megatron.convert.weights import Weights

SLAB = 2**22  # numbers that are compared in float64 at once
SHOWN = 5


@dataclass
class Comparison:
    """What two sets of tensors have in common."""

    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    """Tensors of different shapes, with both."""
    dtypes: list[str] = field(default_factory=list)
    """Tensors of different dtypes, with both; their values are compared too."""
    largest: dict[str, float] = field(default_factory=dict)
    """Tensors that are not the same bit for bit: max |a - b|, 0 where only the dtype or the sign of a zero differs."""
    same: int = 0

    @property
    def identical(self) -> bool:
        """Whether both hold the same tensors, bit for bit."""
        return not (self.only_first or self.only_second or self.shapes or self.dtypes or self.largest)

    def lines(self) -> Iterator[str]:
        """The result, a line each; the first is "identical: ..." or counts them."""
        if self.identical:
            yield f"identical: {self.same} tensors, bit for bit"
            return
        yield f"{self.same} tensors are the same bit for bit"
        for what, names in (
            ("only in the first", self.only_first),
            ("only in the second", self.only_second),
            ("of different shapes", self.shapes),
            ("of different dtypes", self.dtypes),
        ):
            if names:
                more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                yield f"{len(names)} {what}: {'; '.join(names[:SHOWN])}{more}"
        if self.largest:
            worst = sorted(self.largest.items(), key=lambda item: -math.inf if math.isnan(item[1]) else -item[1])
            yield f"{len(worst)} differ in their bits; max |a - b| is {worst[0][1]:.6g}. The worst:"
            yield from (f"  {name}  {value:.6g}" for name, value in worst[:SHOWN])


def compare(first: Weights, second: Weights, seen: Callable[[int], None] = lambda size: None) -> Comparison:
    """Compare all tensors; `seen` is called with the bytes of each pair.

    Raises CheckpointError when one cannot be read.
    """
    ours, theirs = first.tensors, second.tensors
    found = Comparison(
        only_first=[name for name in ours if name not in theirs],
        only_second=[name for name in theirs if name not in ours],
    )
    for name in ours:
        if name not in theirs:
            continue
        (shape, dtype), (other_shape, other_dtype) = ours[name], theirs[name]
        if shape != other_shape:
            found.shapes.append(f"{name} {shape} and {other_shape}")
            continue
        if dtype != other_dtype:
            found.dtypes.append(f"{name} {dtype} and {other_dtype}")
        largest = _difference(first, second, name)
        seen(ours[name].nbytes + theirs[name].nbytes)
        if largest is None:
            found.same += 1
        else:
            found.largest[name] = largest
    return found


def _difference(first: Weights, second: Weights, name: str) -> float | None:
    """max |a - b| of one tensor, None when it is the same bit for bit. Both are forgotten on return."""
    a, b = first.read(name), second.read(name)
    return None if same_bits(a, b) else max_difference(a, b)


def max_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| in float64; NaN where a number stands against a NaN."""
    largest = 0.0
    for x, y in zip(a.flatten().split(SLAB), b.flatten().split(SLAB), strict=True):
        x, y = x.double(), y.double()
        # Infinities of one sign, and NaNs in both, do not differ.
        differ = ~((x == y) | (x.isnan() & y.isnan()))
        if differ.any():
            slab = float((x[differ] - y[differ]).abs().max())
            if math.isnan(slab):
                return math.nan
            largest = max(largest, slab)
    return largest


def nonfinite_tensors(weights: Weights, seen: Callable[[int], None] = lambda size: None) -> list[str]:
    """The names of tensors with a NaN or an infinity; `seen` is called with the bytes of each tensor."""
    found = []
    for name in weights.tensors:
        # The least and the largest number are NaN where one is.
        if not all(math.isfinite(bound) for bound in torch.aminmax(weights.read(name))):
            found.append(name)
        seen(weights.tensors[name].nbytes)
    return found
