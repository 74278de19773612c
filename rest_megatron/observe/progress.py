"""What the terminal shows: one line per training step, and nothing that steers it."""

import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TextIO

from rest_megatron.config.schema import Config
from rest_megatron.utils.text import clean, duration

# Label, metric, format; a metric that a step does not have, or that is not a number, is left out. The last ones are cut
# off on a narrow terminal.
COLUMNS = (
    ("reward", "reward/mean", "{:.3f}"),
    ("format", "reward/format", "{:.2f}"),
    ("exact", "reward/exact", "{:.2f}"),
    ("len", "rollout/length", "{:.0f}"),
    ("mismatch", "mismatch/mean", "{:.1e}"),
    ("v", "rollout/weight_version", "{:.0f}"),
    ("gnorm", "actor/grad_norm", "{:.3g}"),
    ("tok/s", "rollout/tokens_per_second", "{:.0f}"),
    ("H format", "entropy/format", "{:.3f}"),
    ("name", "entropy/tool_name", "{:.3f}"),
    ("params", "entropy/parameters", "{:.3f}"),
    ("cot", "entropy/cot", "{:.3f}"),
    ("loss", "actor/loss", "{:.4f}"),
)
ALARMS = (
    ("SHORT ANSWERS", "alarm/short_answers"),
    ("FORMAT HACKING", "alarm/format_hacking"),
    ("MISMATCH", "alarm/mismatch"),
    ("CONTROL TOKENS", "alarm/control_tokens"),
)


def format_line(step: int, total: int, metrics: Mapping[str, float], remaining: float | None) -> str:
    """The line of one step; remaining: estimated seconds to the end, None when unknown.

    What was not measured, a missing metric or NaN, is left out; an infinite gradient norm is shown. Alarms that last
    and the times come before the metrics, where a narrow terminal shows them.
    """
    parts = [f"step {step:>{len(str(total))}}/{total}", *(label for label, name in ALARMS if metrics.get(name))]
    if "time/step" in metrics:
        parts.append(f"{metrics['time/step']:.1f} s")
    if remaining is not None:
        parts.append(f"ETA {duration(remaining)}")
    shown = [(label, text, metrics.get(name, math.nan)) for label, name, text in COLUMNS]
    parts += [f"{label} {text.format(value)}" for label, text, value in shown if not math.isnan(value)]
    return "  ".join(parts)


class Progress(Protocol):
    """Shows how a run comes along."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one step of `total`; steps count from 1."""

    def write(self, text: str) -> None:
        """Show text on lines of its own."""


class ProgressLine:
    """Progress on `stream`: on a terminal the line of the last step stays in place, elsewhere each gets its own.

    `steps` off: only `write` shows.
    """

    def __init__(self, stream: TextIO, steps: bool = True) -> None:
        self._stream = stream
        self._steps = steps
        self._rewrites = stream.isatty()
        self._open = False
        self._seconds = 0.0
        self._count = 0

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one step; the time left follows from the mean of time/step."""
        if "time/step" in metrics:
            self._seconds += metrics["time/step"]
            self._count += 1
        if not self._steps:
            return
        remaining = self._seconds / self._count * (total - step) if self._count else None
        line = clean(format_line(step, total, metrics, remaining))
        if self._rewrites:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[2K{line[:width]}")
        else:
            self._stream.write(f"{line}\n")
        self._open = self._rewrites
        self._stream.flush()

    def write(self, text: str) -> None:
        """Show text on lines of its own."""
        self.close()
        self._stream.write(f"{clean(text)}\n")
        self._stream.flush()

    def close(self) -> None:
        """End a line that was kept open."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False


class NoProgress:
    """The progress of every rank but the first: none."""

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show nothing."""

    def write(self, text: str) -> None:
        """Show nothing."""


@contextmanager
def open_progress(rank: int, config: Config) -> Iterator[Progress]:
    """The progress of this rank; log.quiet leaves only what `write` is given."""
    if rank != 0:
        yield NoProgress()
        return
    line = ProgressLine(sys.stdout, steps=not config.log.quiet)
    try:
        yield line
    finally:
        line.close()
