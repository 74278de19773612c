"""Waits for what another process or thread does; the limits are those of a test that has failed, on a busy machine."""

import time
from collections.abc import Callable


def happens(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether it comes true within this many seconds; returns as soon as it has."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for it. Raises AssertionError when it does not come true in time."""
    assert happens(condition, seconds), f"did not happen within {seconds:g} s"
