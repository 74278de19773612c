"""Reading and writing a few rows of logits at a time, so that no full-precision copy of them ever exists."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


class Rows:
    """The listed rows of a tensor [..., V] with any leading shape and strides.

    numbers: [N] int64, increasing row numbers, counted over the flattened leading shape.
    """

    def __init__(self, tensor: Tensor, numbers: Tensor) -> None:
        self.tensor = torch.atleast_2d(tensor)
        self.numbers = numbers
        self._flat = _flat_view(self.tensor) if tensor.device.type == "cpu" else None

    @property
    def num_elements(self) -> int:
        """N * V."""
        return len(self.numbers) * self.tensor.shape[-1]

    def chunks(self, elements: int, block: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """Cut the list into parts of at most `elements` elements, or one row: yield (part, values).

        part: a slice of the list, shorter than others by one row at most, so that compiled code meets no last part of a
        single row, which it would take for a shape of its own.
        values [n, W]: a copy of those rows in one buffer, valid until the next part. W is V rounded up to whole blocks,
        with -inf in the columns beyond V.
        """
        num_rows, num_columns = len(self.numbers), self.tensor.shape[-1]
        num_parts = -(-num_rows // max(1, elements // num_columns))
        cuts = [num_rows * part // num_parts for part in range(num_parts + 1)]
        buffer = self.tensor.new_full((-(-num_rows // num_parts), -(-num_columns // block) * block), -math.inf)
        for part in map(slice, cuts[:-1], cuts[1:]):
            values = buffer[: part.stop - part.start].detach()
            self._read(part, values[:, :num_columns])
            yield part, values

    def write(self, part: slice, values: Tensor) -> None:
        """Overwrite a part of the rows with `values` [n, V]."""
        if self._flat is None:
            self.tensor[self._index(part)] = values
        else:
            for place, run in self._runs(part):
                self._flat[run] = values[place]

    def zero_(self) -> None:
        """Overwrite all listed rows with 0."""
        if self._flat is None:
            self.tensor[self._index(slice(None))] = 0
        else:
            for _, run in self._runs(slice(None)):
                self._flat[run] = 0

    def index(self, columns: Tensor) -> tuple[Tensor, ...]:
        """`tensor[rows.index(columns)]` is the element of each row in its own column; columns int64 [N]."""
        return *self._index(slice(None)), columns

    def _read(self, part: slice, out: Tensor) -> None:
        if self._flat is None:
            out.copy_(self.tensor[self._index(part)])
        else:
            for place, run in self._runs(part):
                out[place] = self._flat[run]

    def _runs(self, part: slice) -> Iterator[tuple[slice, slice]]:
        """The runs of consecutive rows in a part: (their place in it, their rows). On a CPU, where copying them one by
        one is twice as fast as an indexed copy.
        """
        numbers = self.numbers[part]
        if len(numbers) == 0:
            return
        breaks = ((numbers.diff() != 1).nonzero().squeeze(-1) + 1).tolist()
        starts = [0, *breaks]
        for first, start, stop in zip(numbers[starts].tolist(), starts, [*breaks, len(numbers)], strict=True):
            yield slice(start, stop), slice(first, first + stop - start)

    def _index(self, part: slice) -> tuple[Tensor, ...]:
        return torch.unravel_index(self.numbers[part], self.tensor.shape[:-1])


def _flat_view(tensor: Tensor) -> Tensor | None:
    """`tensor` [..., V] as a view [T, V]; None where its strides allow none."""
    try:
        return tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        return None
