"""Which beginnings the sequences of a batch have in common: a trie over token ids, so that each is run once.

A causal model computes the same at a token for all sequences that begin alike up to it. The answers of a group share
their prompt; equal answers are one; dialogues may share turns, and all prompts what the chat template puts first.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LEAST_SAVING = 0.05
"""Of the tokens below a beginning: one that saves less is repeated, for what is cut up is slower to attend to."""


@dataclass
class Node:
    """A place where sequences part or end. The tokens up to it are those of each of its sequences."""

    end: int
    """Tokens before it, from the sequences' beginning."""
    example: int
    """Number of a sequence that runs through it."""
    members: list[int] = field(default_factory=list)
    """Numbers of the sequences that end here."""
    children: list["Node"] = field(default_factory=list)

    @property
    def tokens_below(self) -> int:
        """What the children and theirs add to the tokens up to here."""
        return sum(child.end - self.end + child.tokens_below for child in self.children)

    @property
    def tokens(self) -> int:
        """All distinct tokens of the sequences here and below, from their beginning."""
        return self.end + self.tokens_below

    def sequences(self) -> Iterator[int]:
        """Numbers of the sequences that end here or below."""
        yield from self.members
        for child in self.children:
            yield from child.sequences()


def shared_prefixes(sequences: Sequence[list[int]]) -> list[Node]:
    """The roots of a trie that holds each sequence but the empty ones."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    path = [Node(0, -1)]  # from a root of nothing to where the last sequence ends
    last: list[int] = []
    for number in order:
        own = sequences[number]
        _close(path, _common(last, own))
        if path[-1].end < len(own):
            path.append(Node(len(own), number))
        path[-1].members.append(number)
        last = own
    _close(path, 0)
    return path[0].children


def unshared(sequences: Sequence[Sequence[int]]) -> list[Node]:
    """A root for each sequence but the empty ones."""
    return [Node(len(own), number, [number]) for number, own in enumerate(sequences) if own]


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    lengths = range(1, min(len(a), len(b)) + 1)
    return bisect_left(lengths, True, key=lambda length: a[:length] != b[:length])


def _close(path: list[Node], end: int) -> None:
    """Shorten the path to `end` tokens, where the next sequence leaves it."""
    while path[-1].end > end:
        node = path.pop()
        if path[-1].end < end:
            path.append(Node(end, node.example))
        path[-1].children += _worth_sharing(node, path[-1].end)


def _worth_sharing(node: Node, start: int) -> list[Node]:
    """The node, or, where sharing its tokens from `start` on saves too little, what is below it."""
    own = node.end - start
    ended = [Node(node.end, node.members[0], node.members)] if node.members else []
    branches = len(node.children) + len(ended)
    if node.children and own * (branches - 1) < LEAST_SAVING * (own + node.tokens_below):
        return ended + node.children
    return [node]
