"""Which answers each data-parallel rank works on."""

from collections.abc import Sequence


def deal(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Indices for each rank, token counts balanced: longest first, each to the rank with the fewest tokens so far.

    Deterministic, so every rank computes the same deal. Each list is in ascending order.
    """
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(num_ranks), key=lambda r: (totals[r], len(hands[r]), r))
        hands[rank].append(i)
        totals[rank] += lengths[i]
    return [sorted(hand) for hand in hands]
