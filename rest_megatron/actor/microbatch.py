"""Answers as micro-batches: which tokens a pack holds, and which of its rows predict which targets.

Per-token streams (log-probs, advantages, weights) are flat vectors over the target tokens of a list of trajectories,
in list order: those of its response ids that the policy gave, or shall learn to give. A micro-batch knows which of its
rows predict which entries of those vectors. A row that several trajectories share predicts an entry of each of them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from rest_megatron.actor.prefixes import Node
from rest_megatron.model.packed import BEGINS, PackedSequences, Span
from rest_megatron.types import Trajectory


@dataclass(frozen=True)
class MicroBatch:
    """One pack of t tokens, of which rows predict n targets."""

    tokens: Tensor
    """[1, t] int64."""
    rows: Tensor
    """[n] int64: the row of the pack that predicts each target; one may predict several."""
    labels: Tensor
    """[n] int64: the targets."""
    index: Tensor
    """[n] int64: where they lie in the flat vectors."""
    sequence_index: Tensor
    """[n] int64: which of the pack's answers each of them belongs to."""
    num_sequences: int
    packed: PackedSequences


def tokens_to_run(trajectory: Trajectory) -> list[int]:
    """The ids before the last target, which are all that its targets' predictions depend on; [] without a target."""
    targets = trajectory.target_positions
    return [*trajectory.prompt_ids, *trajectory.response_ids[: targets[-1]]] if targets else []


def micro_batches(
    trajectories: Sequence[Trajectory],
    sequences: Sequence[Sequence[int]],
    bins: Sequence[Sequence[Node]],
    *,
    multiple_of: int,
    same_length: bool,
    device: torch.device,
) -> list[MicroBatch]:
    """One MicroBatch per bin; an empty bin becomes a dummy without rows.

    sequences: `tokens_to_run` of each trajectory; bins: of `pack_sequences`. Token counts are padded to `multiple_of`
    (sequence parallelism cuts them), and with `same_length` to the longest bin's (pipeline stages then exchange tensors
    of one known shape). Padding is a sequence of its own.
    """
    starts = [0, *accumulate(t.num_targets for t in trajectories)]
    sizes = [max(1, sum(root.tokens for root in bin)) for bin in bins]
    sizes = [-(-size // multiple_of) * multiple_of for size in sizes]
    if same_length:
        sizes = [max(sizes)] * len(sizes)
    return [
        _micro_batch(trajectories, sequences, bin, starts, size, device) for bin, size in zip(bins, sizes, strict=True)
    ]


def _micro_batch(
    trajectories: Sequence[Trajectory],
    sequences: Sequence[Sequence[int]],
    roots: Sequence[Node],
    starts: Sequence[int],
    size: int,
    device: torch.device,
) -> MicroBatch:
    spans, tokens, members = _spans(roots, sequences)
    first = [0, *accumulate(span.length for span in spans)]
    rows: list[int] = []
    labels: list[int] = []
    index: list[int] = []
    sequence_index: list[int] = []
    for place, (i, end) in enumerate(members):
        own = _rows(spans, first, end)
        prompt_ids, response_ids, _ = trajectories[i]
        positions = trajectories[i].target_positions
        rows += [own[len(prompt_ids) - 1 + position] for position in positions]
        labels += [response_ids[position] for position in positions]
        index += range(starts[i], starts[i + 1])
        sequence_index += [place] * len(positions)
    if len(tokens) < size:
        spans.append(Span(size - len(tokens), 0))
        tokens += [0] * (size - len(tokens))

    def vector(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return MicroBatch(
        tokens=vector(tokens).unsqueeze(0),
        rows=vector(rows),
        labels=vector(labels),
        index=vector(index),
        sequence_index=vector(sequence_index),
        num_sequences=len(members),
        packed=PackedSequences.of(spans, device),
    )


def _spans(
    roots: Sequence[Node], sequences: Sequence[Sequence[int]]
) -> tuple[list[Span], list[int], list[tuple[int, int]]]:
    """The nodes' own tokens as spans, siblings side by side; all tokens; and (sequence, its last span) of each.

    Siblings are in order of length, so that those that attend together need little padding.
    """
    spans: list[Span] = []
    tokens: list[int] = []
    members: list[tuple[int, int]] = []
    waiting = deque([(roots, 0, BEGINS)])
    while waiting:
        siblings, start, parent = waiting.popleft()
        for node in sorted(siblings, key=lambda node: (node.end, node.example)):
            members += [(member.number, len(spans)) for member in node.members]
            if node.children:
                waiting.append((node.children, node.end, len(spans)))
            tokens += sequences[node.example][start : node.end]
            spans.append(Span(node.end - start, start, parent))
    return spans, tokens, members


def _rows(spans: Sequence[Span], first: Sequence[int], end: int) -> list[int]:
    """The rows of a sequence's tokens in the pack, given the span that it ends in."""
    chain = []
    while end != BEGINS:
        chain.append(end)
        end = spans[end].parent
    return [row for number in reversed(chain) for row in range(first[number], first[number + 1])]
