"""Packing: sequences that begin alike go into one micro-batch, up to its capacity."""

from collections.abc import Sequence

from rest_megatron.actor.prefixes import Node, shared_prefixes, unshared

BATCHES_PER_STAGE = 4
"""Micro-batches that a pipeline of p stages wants for each: of m, its stages spend (p - 1) / (m + p - 1) waiting."""


def pack_sequences(sequences: Sequence[list[int]], capacity: int, shared: bool, pp_size: int) -> list[list[Node]]:
    """What each micro-batch of at most `capacity` tokens holds; shared: whether a common beginning is run once.

    The members of its nodes are numbers of sequences; empty ones are nowhere. Raises ValueError for a sequence that is
    longer than the capacity.
    """
    for number, own in enumerate(sequences):
        if len(own) > capacity:
            raise ValueError(
                f"sequence {number} has {len(own)} tokens, train.max_tokens_per_micro_batch is {capacity}; raise it to "
                "at least the longest prompt plus answer"
            )
    roots = shared_prefixes(sequences) if shared else unshared(sequences)
    return pack_roots(roots, capacity, BATCHES_PER_STAGE * pp_size if pp_size > 1 else 1)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices with at most `capacity` tokens each, as are the lengths: first fit, longest first."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fit = next((b for b, free in enumerate(room) if free >= lengths[i]), None)
        if fit is None:
            bins.append([])
            room.append(capacity)
            fit = len(bins) - 1
        bins[fit].append(i)
        room[fit] -= lengths[i]
    return bins


def pack_roots(roots: Sequence[Node], capacity: int, fewest: int) -> list[list[Node]]:
    """Bins of roots with at most `capacity` tokens each; a root that is longer is cut in several.

    No sequence may be longer than the capacity. fewest: bins that a pipeline wants, so that its stages wait little for
    one another; more than there are roots' worth of tokens it does not get.
    """
    parts = [part for root in roots for part in _cut(root, capacity)]
    sizes = [part.tokens for part in parts]
    if sizes and fewest > 1:
        capacity = min(capacity, max(*sizes, -(-sum(sizes) // fewest)))
    return [[parts[i] for i in bin] for bin in pack(sizes, capacity)]


def _cut(node: Node, capacity: int) -> list[Node]:
    """The node, or nodes with the same beginning that hold its sequences in as few runs of it as first fit finds.

    What is below a child stays together where it fits, so that as little as possible is run twice.
    """
    if node.tokens <= capacity:
        return [node]
    pieces = [piece for child in node.children for piece in _cut(child, capacity)]
    bins = pack([piece.tokens - node.end for piece in pieces], capacity - node.end)
    cut = [Node(node.end, node.example, [], [pieces[i] for i in bin]) for bin in bins]
    cut[0].members = node.members
    return cut
