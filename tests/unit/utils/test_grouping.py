"""Sequences cut into groups of limited size."""

import pytest

from rest_megatron.utils.grouping import groups_within


@pytest.mark.parametrize(
    "limit, sizes, groups",
    [
        (10, [], []),
        (10, [4, 6, 1], [[4, 6], [1]]),
        (10, [4, 7, 3, 1], [[4], [7, 3], [1]]),
        (10, [11, 1, 2], [[11], [1, 2]]),
        (10, [1, 2, 25, 25, 3], [[1, 2], [25], [25], [3]]),
        (10, [0, 10, 0, 1], [[0, 10, 0], [1]]),
        (0, [2, 3], [[2], [3]]),
    ],
)
def test_each_group_takes_what_fits_and_a_larger_item_stands_alone(limit, sizes, groups):
    assert list(groups_within(limit, sizes, lambda size: size)) == groups


def test_a_group_is_given_before_the_items_after_it_are_made():
    made = []

    def items():
        for size in (6, 6, 6):
            made.append(size)
            yield size

    first = next(groups_within(10, items(), lambda size: size))
    assert first == [6] and len(made) == 2
