"""How far a long pass over files is: one line that stays in place on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rest_megatron.utils.text import duration

ON_TERMINAL, ELSEWHERE = 0.2, 30.0
"""Seconds between two lines."""


class Meter:
    """Counts bytes up to `total`, and shows on `stream` what share of them is done, how fast, and the time left."""

    def __init__(self, stream: TextIO, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._total = total
        self._clock = clock
        self._rewrites = stream.isatty()
        self._pause = ON_TERMINAL if self._rewrites else ELSEWHERE
        self._begin = self._shown = clock()
        self._done = 0

    def add(self, size: int) -> None:
        """`size` more bytes are done."""
        self._done += size
        now = self._clock()
        if now - self._shown < self._pause:
            return
        self._shown = now
        rate = self._done / (now - self._begin)
        line = f"{self._done / self._total:4.0%} of {size_text(self._total)}  {size_text(rate)}/s"
        line += f"  {duration(max(0, self._total - self._done) / rate)} left"
        self._stream.write(f"\r\x1b[2K{line}" if self._rewrites else f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the line off a terminal."""
        if self._rewrites:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


@contextmanager
def metered(stream: TextIO, total: int) -> Iterator[Callable[[int], None]]:
    """What hears of bytes that are done, of `total`; see `Meter`."""
    meter = Meter(stream, total)
    try:
        yield meter.add
    finally:
        meter.close()


def size_text(size: float) -> str:
    """Bytes as "640 B", "1.5 MiB" or "27.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
