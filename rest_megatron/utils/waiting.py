"""Waiting for replies from elsewhere, with a look now and then at whether they are still wanted."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

CHECK_SECONDS = 0.5


def no_stop() -> None:
    """The check of a wait that nothing breaks off."""


async def gather(coroutines: Iterable[Coroutine[Any, Any, T]], check: Callable[[], None] = no_stop) -> list[T]:
    """What each returned, in their order, all run at once.

    `check` is called every CHECK_SECONDS meanwhile. What it raises, or one of them, cancels the others.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    pending = set(tasks)
    try:
        while pending:
            check()
            done, pending = await asyncio.wait(pending, timeout=CHECK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result() for task in tasks]
