"""Which beginnings of sequences are run once."""

import random

import pytest

from rest_megatron.actor.packing import pack_sequences
from rest_megatron.actor.prefixes import LEAST_SAVING, Node, shared_prefixes, unshared


def outline(node: Node):
    """(end, members, children), children in order of their ends."""
    children = sorted((outline(child) for child in node.children), key=repr)
    return node.end, [member.number for member in node.members], children


def shared(sequences):
    """Each sequence with as many targets as its number."""
    return shared_prefixes(sequences, range(len(sequences)))


def outlines(sequences):
    return [outline(root) for root in shared(sequences)]


PROMPT, OTHER = list(range(10, 20)), list(range(30, 37))


def test_answers_hang_on_their_prompt():
    sequences = [[*PROMPT, 1], [*OTHER, 1, 2], [*PROMPT, 2, 3], [*PROMPT, 3]]
    assert outlines(sequences) == [
        (10, [], [(11, [0], []), (11, [3], []), (12, [2], [])]),
        (9, [1], []),
    ]


def test_equal_sequences_are_one():
    assert outlines([[*PROMPT, 1], [*PROMPT, 1]]) == [(11, [0, 1], [])]


def test_a_sequence_may_end_where_others_go_on():
    assert outlines([[*PROMPT, 1, 2], PROMPT, [*PROMPT, 3]]) == [(10, [1], [(11, [2], []), (12, [0], [])])]


def test_what_answers_share_beyond_their_prompt_is_shared_too():
    turn = list(range(50, 60))
    sequences = [[*PROMPT, *turn, 1, 2], [*PROMPT, *turn, 3], [*PROMPT, 4, 5, 6]]
    assert outlines(sequences) == [(10, [], [(13, [2], []), (20, [], [(21, [1], []), (22, [0], [])])])]


def test_a_beginning_that_saves_little_is_repeated():
    tails = [[k] * 30 for k in range(2)]
    assert outlines([[*PROMPT, 7, *tail] for tail in tails]) == [(11, [], [(41, [0], []), (41, [1], [])])]
    assert outlines([[7, *tail] for tail in tails]) == [(31, [0], []), (31, [1], [])]


def test_empty_sequences_have_no_place():
    for trie in (shared_prefixes, unshared):
        assert [list(root.members) for root in trie([[], [1], []], [0, 5, 0])] == [[(1, 5)]]


def read_back(roots, sequences):
    """Every sequence from the tokens of the nodes on its way, and the tokens of all nodes."""
    found, total = {}, 0
    waiting = [(root, 0, []) for root in roots]
    while waiting:
        node, start, before = waiting.pop()
        own = sequences[node.example][start : node.end]
        assert own, "a node has tokens"
        total += len(own)
        found |= {member.number: [*before, *own] for member in node.members}
        waiting += [(child, node.end, [*before, *own]) for child in node.children]
    return found, total


def distinct(sequences):
    return len({tuple(own[: i + 1]) for own in sequences for i in range(len(own))})


def check(sequences):
    """Every sequence reads back, and of the distinct tokens no more are run twice than may be."""
    roots = shared(sequences)
    found, total = read_back(roots, sequences)
    assert found == {number: own for number, own in enumerate(sequences) if own}
    assert total == sum(root.tokens for root in roots)
    assert sum(root.targets for root in roots) == sum(number for number, own in enumerate(sequences) if own)
    assert distinct(sequences) <= total <= distinct(sequences) * (1 + LEAST_SAVING)


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_reads_back_and_little_more_than_the_distinct_tokens_is_run(seed):
    draw = random.Random(seed)
    check([[draw.choice("ab") for _ in range(draw.randint(0, 12))] for _ in range(draw.randint(0, 40))])


@pytest.mark.parametrize("step", [1, 5, 40])
def test_many_that_leave_one_trunk_one_by_one_share_it(step):
    """Each beginning by itself would save little."""
    check([[*range(step * k), *(-k - 1 for _ in range(400))] for k in range(1, 30)])


def test_sequences_that_each_continue_the_last_share_all_of_it():
    check([[5] * length for length in range(1, 150)])


def test_a_thousand_of_them_are_no_deep_recursion():
    sequences = [[5] * length for length in range(1, 1200)]
    bins = pack_sequences(sequences, [1] * len(sequences), 1300, True, 1)
    assert sum(len(read_back(bin, sequences)[0]) for bin in bins) == len(sequences)
