"""Packing of variable-length answers into micro-batches.

Per-token streams (log-probs, advantages, weights) are flat vectors over the target tokens of a list of trajectories,
in list order: those of its response ids that the policy gave, or shall learn to give. A micro-batch knows which of its
rows predict which entries of those vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rest_megatron.model.attention import PackedSequences
from rest_megatron.types import Trajectory

IGNORE_INDEX = -100


@dataclass(frozen=True)
class MicroBatch:
    """One pack. t tokens, of which n rows predict a target token."""

    tokens: Tensor
    """[1, t] int64."""
    labels: Tensor
    """[t] int64: the next token where it is a target, else IGNORE_INDEX."""
    rows: Tensor
    """[n] int64: rows of the pack that predict a target token."""
    index: Tensor
    """[n] int64: where those tokens lie in the flat vectors."""
    sequence_index: Tensor
    """[n] int64: which of the pack's answers each of them belongs to."""
    num_sequences: int
    packed: PackedSequences

    def spread(self, stream: Tensor) -> Tensor:
        """A flat vector's entries of this micro-batch at their rows, 0 elsewhere: [t]."""
        return stream.new_zeros(self.labels.shape[0]).index_copy_(0, self.rows, stream[self.index])


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices with at most `capacity` tokens each: first fit, longest first.

    Raises ValueError for a sequence longer than the capacity.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] > capacity:
            raise ValueError(
                f"sequence {i} has {lengths[i]} tokens, train.max_tokens_per_micro_batch is {capacity}; raise it to at "
                "least the longest prompt plus answer"
            )
        fit = next((b for b, free in enumerate(room) if free >= lengths[i]), None)
        if fit is None:
            bins.append([])
            room.append(capacity)
            fit = len(bins) - 1
        bins[fit].append(i)
        room[fit] -= lengths[i]
    return bins


def micro_batches(
    trajectories: Sequence[Trajectory],
    bins: list[list[int]],
    *,
    multiple_of: int,
    same_length: bool,
    device: torch.device,
) -> list[MicroBatch]:
    """One MicroBatch per bin; an empty bin becomes a dummy without rows.

    Token counts are padded to `multiple_of` (sequence parallelism cuts them), and with `same_length` to the longest
    bin's (pipeline stages then exchange tensors of one known shape). Padding is a sequence of its own.
    """
    starts = torch.tensor([0] + [t.num_targets for t in trajectories]).cumsum(0).tolist()
    sizes = [max(1, sum(trajectories[i].length for i in bin)) for bin in bins]
    sizes = [-(-size // multiple_of) * multiple_of for size in sizes]
    if same_length:
        sizes = [max(sizes)] * len(sizes)
    return [_micro_batch(trajectories, bin, starts, size, device) for bin, size in zip(bins, sizes, strict=True)]


def _micro_batch(
    trajectories: Sequence[Trajectory], bin: list[int], starts: list[int], size: int, device: torch.device
) -> MicroBatch:
    tokens: list[int] = []
    lengths: list[int] = []
    rows: list[int] = []
    index: list[int] = []
    sequence_index: list[int] = []
    for i in bin:
        prompt_ids, response_ids, _ = trajectories[i]
        first = len(tokens) + len(prompt_ids) - 1
        targets = [first + position for position in trajectories[i].target_positions]
        rows += targets
        index += range(starts[i], starts[i + 1])
        sequence_index += [len(lengths)] * len(targets)
        tokens += [*prompt_ids, *response_ids]
        lengths.append(trajectories[i].length)
    if len(tokens) < size:
        lengths.append(size - len(tokens))
        tokens += [0] * (size - len(tokens))
    ids = torch.tensor(tokens)
    row = torch.tensor(rows, dtype=torch.int64)
    labels = torch.full((size,), IGNORE_INDEX)
    labels[row] = ids[row + 1]
    return MicroBatch(
        tokens=ids.unsqueeze(0).to(device),
        labels=labels.to(device),
        rows=row.to(device),
        index=torch.tensor(index, dtype=torch.int64, device=device),
        sequence_index=torch.tensor(sequence_index, dtype=torch.int64, device=device),
        num_sequences=len(bin),
        packed=PackedSequences.of(lengths, device),
    )
