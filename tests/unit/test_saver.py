"""What becomes of a save in the background when a run ends otherwise than it was meant to."""

from types import SimpleNamespace

import pytest

from rest_megatron.errors import CheckpointError, NonFiniteError, Preempted
from rest_megatron.saver import Mark, Saver


class Store:
    """A store whose last save in the background has failed, or is to be waited for."""

    directory = "run/checkpoints"

    def __init__(self, error: Exception | None):
        self.error, self.closed = error, 0

    def close(self) -> None:
        self.closed += 1
        error, self.error = self.error, None
        if error is not None:
            raise error


def saver(error: Exception | None) -> tuple[Saver, list[str]]:
    """A saver at the end of its third step, and what happens."""
    events: list[str] = []
    made = object.__new__(Saver)
    made.store, made._steps, made._marked = Store(error), 5, Mark({"step": 3}, None, {})
    rollout = SimpleNamespace(sleep=lambda: events.append("sleep"))
    made.session = SimpleNamespace(progress=SimpleNamespace(write=events.append), rollout=rollout)
    made.save = lambda: events.append("save")
    return made, events


def test_a_stop_is_saved_though_an_earlier_save_failed():
    made, events = saver(CheckpointError("disk full"))
    with pytest.raises(Preempted, match="SIGUSR1: saved after step 3 of 5 in run/checkpoints"):
        with made.saving_when_stopped():
            raise Preempted("SIGUSR1")
    assert events[1:] == ["sleep", "save"] and "disk full" in events[0]
    assert made.store.closed == 2


@pytest.mark.parametrize("failure", [None, CheckpointError("disk full")])
def test_an_error_waits_for_the_save_under_way_and_is_not_hidden_by_it(failure):
    made, events = saver(failure)
    with pytest.raises(NonFiniteError, match="too many"):
        with made.saving_when_stopped():
            raise NonFiniteError("too many")
    assert made.store.closed == 1 and "save" not in events


def test_at_the_end_a_failed_save_is_an_error():
    made, _ = saver(CheckpointError("disk full"))
    with pytest.raises(CheckpointError, match="disk full"):
        with made.saving_when_stopped():
            pass
