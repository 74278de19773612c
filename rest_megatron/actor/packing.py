"""Packing: sequences that begin alike go into one micro-batch, as far as it has room."""

from collections.abc import Sequence
from typing import NamedTuple

from rest_megatron.actor.prefixes import Node, alone, shared_prefixes, unshared

KEYS_PER_TOKEN = 8
"""Keys that may be gathered for each token of a micro-batch's capacity."""
BATCHES_PER_STAGE = (1, 2, 4)
"""Micro-batches for each stage of a pipeline that are tried."""


class Load(NamedTuple):
    """What a micro-batch has to hold, or has room for."""

    tokens: int
    targets: int
    """Rows of logits: each sequence's own, though it shares all of its tokens."""
    keys: int
    """Tokens that its spans attend to: a shared beginning once for each span that continues it."""

    def holds(self, other: "Load") -> bool:
        """Whether the other fits in."""
        return all(room >= size for room, size in zip(self, other, strict=True))

    def plus(self, other: "Load", factor: int = 1) -> "Load":
        """The sum with a multiple of the other."""
        return Load(*(own + factor * size for own, size in zip(self, other, strict=True)))


def pack_sequences(
    sequences: Sequence[list[int]], targets: Sequence[int], capacity: int, shared: bool, pp_size: int
) -> list[list[Node]]:
    """What each micro-batch holds: at most `capacity` tokens, as many targets, and KEYS_PER_TOKEN times as many keys.

    targets: how many each sequence has, at most its length. shared: whether a common beginning is run once. The members
    of the nodes are numbers of sequences; empty ones are nowhere. Raises ValueError for a sequence that is longer than
    the capacity.
    """
    longest = max(map(len, sequences), default=0)
    if longest > capacity:
        number = next(i for i, own in enumerate(sequences) if len(own) > capacity)
        raise ValueError(
            f"sequence {number} has {len(sequences[number])} tokens, train.max_tokens_per_micro_batch is {capacity}; "
            "raise it to at least the longest prompt plus answer"
        )
    roots = (shared_prefixes if shared else unshared)(sequences, targets)
    total = _tokens(roots)
    sizes = {capacity}
    if pp_size > 1:
        sizes |= {min(capacity, max(longest, -(-total // (number * pp_size)))) for number in BATCHES_PER_STAGE}
    packed = [_bins(roots, Load(size, capacity, KEYS_PER_TOKEN * capacity)) for size in sorted(sizes, reverse=True)]
    # Of m micro-batches, padded to the longest, the stages of a pipeline of p take as long as m + p - 1.
    return min(packed, key=lambda bins: (len(bins) + pp_size - 1) * max(map(_tokens, bins), default=0))


def _tokens(roots: Sequence[Node]) -> int:
    return sum(root.tokens for root in roots)


def first_fit(loads: Sequence[Load], capacity: Load) -> list[list[int]]:
    """Bins of indices whose loads add up to at most `capacity`, as each does: first fit, most tokens first."""
    bins: list[list[int]] = []
    room: list[Load] = []
    for i in sorted(range(len(loads)), key=lambda i: (*(-size for size in loads[i]), i)):
        fit = next((b for b, free in enumerate(room) if free.holds(loads[i])), None)
        if fit is None:
            bins.append([])
            room.append(capacity)
            fit = len(bins) - 1
        bins[fit].append(i)
        room[fit] = room[fit].plus(loads[i], -1)
    return bins


def _bins(roots: Sequence[Node], capacity: Load) -> list[list[Node]]:
    """The roots, or what they are cut into, in as few bins as first fit finds."""
    parts = [part for root in roots for part in _cut(root, capacity)]
    return [[parts[i] for i in bin] for bin in first_fit([_load(part) for part in parts], capacity)]


def _load(node: Node, start: int = 0) -> Load:
    """What a node and those below have beyond `start`, from where a span is its own."""
    keys = node.keys_below + (node.end if node.end > start else 0)
    return Load(node.tokens - start, node.targets, keys)


def _cut(node: Node, capacity: Load) -> list[Node]:
    """The node, or nodes with the same beginning that hold its sequences in as few runs of it as first fit finds.

    What is below a child stays together where it fits, so that as little as possible is run twice.
    """
    if capacity.holds(_load(node)):
        return [node]
    pieces = [piece for child in node.children for piece in _cut(child, capacity)]
    pieces += [alone(node.end, member) for member in node.members]
    room = capacity.plus(Load(node.end, 0, node.end), -1)
    fitting = [piece for piece in pieces if room.holds(_load(piece, node.end))]
    # What attends to too much beside its beginning is run by itself.
    others = [piece for piece in pieces if not room.holds(_load(piece, node.end))]
    bins = first_fit([_load(piece, node.end) for piece in fitting], room)
    return others + [_below(node, [fitting[i] for i in bin]) for bin in bins]


def _below(node: Node, pieces: Sequence[Node]) -> Node:
    """The node with these alone: its children's, or sequences that end with it."""
    members = [member for piece in pieces if piece.end == node.end for member in piece.members]
    return Node(node.end, node.example, members, [piece for piece in pieces if piece.end > node.end])
