"""Which beginnings the sequences of a batch have in common: a trie over token ids, so that each is run once.

A causal model computes the same at a token for all sequences that begin alike up to it. The answers of a group share
their prompt; equal answers are one; dialogues may share turns, and all prompts what the chat template puts first.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LEAST_SAVING = 0.05
"""Beginnings that all together save less than this share of the distinct tokens are repeated: what is cut up is slower
to attend to."""
DEEPEST = 200
"""Beginnings of beginnings: what is below the last is repeated, so that functions may call themselves at each."""


class Member(NamedTuple):
    """A sequence that ends at a node."""

    number: int
    targets: int


@dataclass
class Node:
    """A place where sequences part or end. The tokens up to it are those of each of its sequences."""

    end: int
    """Tokens before it, from the sequences' beginning."""
    example: int
    """Number of a sequence that runs through it."""
    members: Sequence[Member] = ()
    children: Sequence["Node"] = ()
    tokens_below: int = field(init=False)
    """What the children and theirs add to the tokens up to here."""
    keys_below: int = field(init=False)
    """Tokens that those below attend to, each child's once."""
    targets: int = field(init=False)
    """Of the sequences here and below."""

    def __post_init__(self) -> None:
        self.tokens_below = sum(child.end - self.end + child.tokens_below for child in self.children)
        self.keys_below = sum(child.end + child.keys_below for child in self.children)
        own = sum(member.targets for member in self.members)
        self.targets = own + sum(child.targets for child in self.children)

    @property
    def tokens(self) -> int:
        """All that is run of the sequences here and below, from their beginning."""
        return self.end + self.tokens_below


@dataclass
class _Open:
    """A node on the way to where the last sequence ends."""

    end: int
    example: int
    members: list[Member] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    repeated: int = 0
    """Tokens below that are run more than once, for all the beginnings that were not worth it."""


def shared_prefixes(sequences: Sequence[list[int]], targets: Sequence[int]) -> list[Node]:
    """The roots of a trie that holds each sequence, with so many targets, but the empty ones.

    At most a share of LEAST_SAVING of the distinct tokens is run more than once, where it is not deeper than DEEPEST.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    path = [_Open(0, -1)]  # from a root of nothing to where the last sequence ends
    last: list[int] = []
    for number in order:
        own = sequences[number]
        _close(path, _common(last, own))
        if path[-1].end < len(own):
            path.append(_Open(len(own), number))
        path[-1].members.append(Member(number, targets[number]))
        last = own
    _close(path, 0)
    return path[0].children


def unshared(sequences: Sequence[list[int]], targets: Sequence[int]) -> list[Node]:
    """A root for each sequence but the empty ones."""
    return [alone(len(own), Member(i, targets[i])) for i, own in enumerate(sequences) if own]


def alone(end: int, member: Member) -> Node:
    """A node for one sequence of `end` tokens."""
    return Node(end, member.number, (member,))


def _common(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    lengths = range(1, min(len(a), len(b)) + 1)
    return bisect_left(lengths, True, key=lambda length: a[:length] != b[:length])


def _close(path: list[_Open], end: int) -> None:
    """Shorten the path to `end` tokens, where the next sequence leaves it."""
    while path[-1].end > end:
        done = path.pop()
        if path[-1].end < end:
            path.append(_Open(end, done.example))
        _hang(done, path[-1], too_deep=len(path) > DEEPEST)


def _hang(done: _Open, parent: _Open, too_deep: bool) -> None:
    """The node below its parent, or, where it saves too little or is too deep, what is below it."""
    node = Node(done.end, done.example, done.members, done.children)
    own, branches = node.end - parent.end, len(node.children) + bool(node.members)
    repeated = done.repeated + own * (branches - 1)
    distinct = own + node.tokens_below - done.repeated
    if node.children and (too_deep or repeated < LEAST_SAVING * distinct):
        ended = [Node(node.end, node.members[0].number, node.members)] if node.members else []
        parent.children += [*ended, *node.children]
        parent.repeated += repeated
    else:
        parent.children.append(node)
        parent.repeated += done.repeated
