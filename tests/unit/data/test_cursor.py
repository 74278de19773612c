"""The data cursor: every prompt once an epoch, and an order that resumes exactly."""

import json

import pytest

from rest_megatron.data.cursor import PromptCursor
from rest_megatron.errors import CheckpointError, DataError


def walk(cursor: PromptCursor, batches: int, size: int) -> list[int]:
    return [index for _ in range(batches) for index in cursor.next_batch(size)]


def test_every_prompt_comes_once_in_each_epoch():
    order = walk(PromptCursor(10, seed=3), batches=10, size=4)
    assert [sorted(order[start : start + 10]) for start in range(0, 40, 10)] == [list(range(10))] * 4


def test_epochs_and_seeds_have_orders_of_their_own():
    order = walk(PromptCursor(50, seed=0), batches=2, size=50)
    assert order[:50] != order[50:]
    assert order[:50] != list(range(50))
    assert walk(PromptCursor(50, seed=1), batches=1, size=50) != order[:50]


def test_the_order_does_not_depend_on_the_batch_size():
    assert walk(PromptCursor(7, seed=0), 6, 4) == walk(PromptCursor(7, seed=0), 4, 6)


def test_the_order_is_pinned():
    # A checkpoint's position means nothing once the order changes; written down when the format was fixed.
    assert PromptCursor(8, seed=0).next_batch(16) == [0, 6, 4, 3, 1, 7, 2, 5, 0, 6, 7, 3, 4, 1, 5, 2]


# 4 batches of 5 end exactly at the second epoch boundary of 10 prompts, 2 at the first, 3 within an epoch.
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4])
def test_a_resumed_cursor_continues_the_unbroken_order(taken):
    unbroken = walk(PromptCursor(10, seed=5), batches=9, size=5)
    first = PromptCursor(10, seed=5)
    before = walk(first, taken, 5)
    resumed = PromptCursor(10, seed=5)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + walk(resumed, 9 - taken, 5) == unbroken


def test_a_batch_may_span_several_epochs():
    assert sorted(PromptCursor(3, seed=0).next_batch(9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_loading_goes_back_as_well_as_forward():
    cursor = PromptCursor(6, seed=2)
    state = cursor.state_dict()
    first = walk(cursor, 5, 4)
    cursor.load_state_dict(state)
    assert walk(cursor, 5, 4) == first


@pytest.mark.parametrize("other", [PromptCursor(9, seed=0), PromptCursor(10, seed=1)])
def test_a_state_of_other_data_or_seed_is_refused(other):
    with pytest.raises(CheckpointError, match="same data and run.seed"):
        PromptCursor(10, seed=0).load_state_dict(other.state_dict())


@pytest.mark.parametrize("position", [-1, None, "3", 2.5])
def test_a_broken_position_is_refused(position):
    cursor = PromptCursor(10, seed=0)
    with pytest.raises(CheckpointError, match="integer of at least 0"):
        cursor.load_state_dict({**cursor.state_dict(), "position": position})


def test_no_prompts_are_refused():
    with pytest.raises(DataError, match="0 prompts"):
        PromptCursor(0, seed=0)
