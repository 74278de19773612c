"""Whether this process is to stop, and whether it makes progress: signals, a time limit, a watchdog.

A signal or the time limit only sets a reason to stop; the run looks at it where it can stop without loss
(`Watch.check`, `Parallel.poll`). One thread receives signals, so that a main thread that waits in C++ misses none, and
ends a process that makes no progress.
"""

import faulthandler
import math
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from rest_megatron.errors import HANG_EXIT_CODE, Preempted

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
"""What `signal.signal` takes and gives back."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Launchers pass on a signal that the whole process group got already: what comes this soon is the same request.
SAME_REQUEST_SECONDS = 2.0
EXCHANGE_SECONDS = 1.0
TICK_SECONDS = 1.0
# Until the process ends whether or not its stacks could be written; a file system may be why it hangs.
REPORT_SECONDS = 30.0


class Watch:
    """Use it as a context manager, in the main thread: elsewhere it gets no signals. Never entered, it does nothing.

    The first of `SIGNALS` is a reason to stop; another one, SAME_REQUEST_SECONDS later or more, ends the process at
    once with exit code 128 + its number. Afterwards, and in forked children, the handlers are those that were there
    before; but after a reason to stop this process ignores further signals.

    Args:
        save_by: seconds after it was entered that are a reason to stop; None: never.
        hang_timeout: seconds without a beat after which the process ends with HANG_EXIT_CODE; 0: never.
        stacks: directory, made when needed, that then gets the stacks of all threads; None: they go to stderr.
        rank: this process's, for messages.
    """

    def __init__(
        self, *, save_by: float | None = None, hang_timeout: float = 0.0, stacks: Path | None = None, rank: int = 0
    ) -> None:
        self._save_by, self._hang_timeout, self._stacks, self._rank = save_by, hang_timeout, stacks, rank
        self._active = False
        self._reason: str | None = None
        self._stop_at = math.inf
        self._first_signal = math.inf
        self._phases: list[str] = []
        self._beats = 0
        self._patience = 0
        self._exchange: Callable[[str | None], str | None] | None = None
        self._next_exchange = 0.0
        self._all_know = False
        self._handlers: dict[signal.Signals, Handler] = {}
        self._wakeup_fd = -1

    @property
    def stop_reason(self) -> str | None:
        """None, or why this process is to stop, as far as it knows: a signal's name, or the time limit."""
        if self._reason is None and time.monotonic() >= self._stop_at:
            return f"checkpoint.save_by={self._save_by:.10g} s are over"
        return self._reason

    def beat(self) -> None:
        """There is progress."""
        self._beats += 1

    def exchange_reasons(self) -> str | None:
        """Pass this rank's reason to stop on to the others, or learn of another's: at once, or every EXCHANGE_SECONDS.

        Returns `stop_reason` as it is then. Ranks may differ in it for a second or so.
        """
        reason, now = self.stop_reason, time.monotonic()
        due = reason is not None or now >= self._next_exchange
        if self._active and self._exchange is not None and due and not self._all_know:
            self._next_exchange = now + EXCHANGE_SECONDS
            known = self._exchange(reason)
            self._all_know = known is not None
            # A signal may have come meanwhile.
            self._reason = self.stop_reason or known
        return self.stop_reason

    def check(self) -> None:
        """Beat, and raise Preempted when a rank is to stop. For one that works alone, inside `Parallel.on_main`."""
        self.beat()
        reason = self.exchange_reasons()
        if reason is not None:
            raise Preempted(reason)

    def connect(self, exchange: Callable[[str | None], str | None]) -> None:
        """exchange: takes this rank's reason to the others and gives it back; for None, another rank's, or None.

        It is called in the thread of `exchange_reasons`, every EXCHANGE_SECONDS at most, until there is a reason; with
        this rank's own at once.
        """
        self._exchange = exchange

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the main thread does within, for the message of the watchdog. Phases may be nested."""
        self._phases.append(name)
        self.beat()
        try:
            yield
        finally:
            self._phases.pop()
            self.beat()

    @contextmanager
    def patient(self) -> Iterator[None]:
        """The watchdog does not count within. For calls that have deadlines of their own."""
        self._patience += 1
        try:
            yield
        finally:
            self.beat()
            self._patience -= 1

    def __enter__(self) -> "Watch":
        self._active = True
        if self._save_by is not None:
            self._stop_at = time.monotonic() + self._save_by
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            self._catch_signals()
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._active = False
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup_fd)
        # A process that stops for a reason ends with its own exit code: launchers send SIGTERM to ranks that end a
        # little later than others.
        if self.stop_reason is None:
            self._restore_handlers()
        self._mouth.send(bytes(1))
        self._thread.join()
        self._mouth.close()
        self._ear.close()

    def _catch_signals(self) -> None:
        self._wakeup_fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, _do_nothing)
            # Libraries' own system calls are resumed after a signal.
            signal.siginterrupt(number, False)
        # A fork would share the pipe: a signal that ends a worker of the user's code is none for this process.
        os.register_at_fork(after_in_child=self._forget_signals)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._handlers = {}

    def _forget_signals(self) -> None:
        if self._handlers:
            signal.set_wakeup_fd(-1)
            self._restore_handlers()

    def _listen(self) -> None:
        """The thread: bytes are signals' numbers, 0 ends it."""
        tick = min(TICK_SECONDS, self._hang_timeout / 10) if self._hang_timeout else None
        silent, seen, before = 0.0, self._beats, time.monotonic()
        self._ear.settimeout(tick)
        while True:
            try:
                for number in self._ear.recv(4096):
                    if number == 0:
                        return
                    self._receive(number)
            except TimeoutError:
                pass  # a tick
            # A process that was suspended meanwhile made no progress for a tick, not for hours.
            now = time.monotonic()
            passed, before = min(now - before, tick or 0.0), now
            if self._beats != seen or self._patience:
                silent, seen = 0.0, self._beats
            else:
                silent += passed
            if self._hang_timeout and silent >= self._hang_timeout:
                self._end_hung(silent)

    def _receive(self, number: int) -> None:
        if number not in SIGNALS:
            return
        now = time.monotonic()
        if now > self._first_signal + SAME_REQUEST_SECONDS:
            os._exit(128 + number)
        if self._first_signal == math.inf:
            self._first_signal = now
            self._reason = self.stop_reason or signal.Signals(number).name

    def _end_hung(self, seconds: float) -> None:
        """Say where, write the stacks, and end the process, whatever may happen on the way."""
        guard = threading.Timer(REPORT_SECONDS, os._exit, [HANG_EXIT_CODE])
        guard.daemon = True
        guard.start()
        where = f"in phase '{'/'.join(self._phases)}'" if self._phases else "between phases"
        message = (
            f"rank {self._rank} made no progress for {seconds:.0f} s {where} (run.hang_timeout={self._hang_timeout:g})"
        )
        path = None if self._stacks is None else self._stacks / f"rank-{self._rank}.txt"
        try:
            _write_stderr(
                f"hang: {message}; stacks: {path or 'below'}. Compare those of all ranks: one that waits for no other "
                "is the cause. Raise run.hang_timeout if this may take so long\n"
            )
            _write_stacks(path, f"{message}; host {platform.node()}, pid {os.getpid()}")
        finally:
            os._exit(HANG_EXIT_CODE)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A signal's handler. Python has written the number to the wakeup fd, which the thread reads, before this call."""


def _write_stacks(path: Path | None, header: str) -> None:
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                _dump(file, header)
            return
        except OSError as error:
            _write_stderr(f"hang: no stacks in {path}: {error}\n")
    with open(2, "w", encoding="utf-8", closefd=False) as file:
        _dump(file, header)


def _dump(file: TextIO, header: str) -> None:
    file.write(f"{header}\n")
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)


def _write_stderr(text: str) -> None:
    """Without the lock of sys.stderr: another thread may hold it forever."""
    os.write(2, text.encode())
