"""Stands between the trainer and a server that it has started: the server never outlives the trainer.

    python -I -S keeper.py TRAINER_PID GRACE_SECONDS DIRECTORY COMMAND...

When its parent, the trainer, has ended in whatever way, or when it is sent SIGTERM, it ends the server with all its
descendants: SIGTERM, and SIGKILL after GRACE_SECONDS. When the server ends by itself, what it left running is killed.
In the end DIRECTORY, which was made for this server alone, is removed. The exit code is the server's, 128 + n after
signal n.

It imports nothing but the standard library, so it starts at once and shares no fate with the trainer's packages.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.5
PAUSE_SECONDS = 0.02
TRACKER_SECONDS = 2.0
KILL_SECONDS = 10.0


class Keeper:
    """One server and its descendants. trainer: process id of the keeper's parent. Raises OSError if it cannot start."""

    def __init__(self, trainer: int, command: list[str]) -> None:
        self.trainer = trainer
        self.exit_code: int | None = None
        self.must_end = False
        self.wakeup, end = os.pipe()
        os.set_blocking(end, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGINT, self._on_end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Whatever the server leaves behind becomes our child.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_keeper
        ).pid

    def watch(self) -> None:
        """Return when the server has ended or has to end."""
        # An orphan gets another parent. A pipe from the trainer would stay open in whatever the trainer has forked.
        while self._runs() and not self.must_end and os.getppid() == self.trainer:
            if select.select([self.wakeup], [], [], POLL_SECONDS)[0]:
                os.read(self.wakeup, 4096)

    def end(self, grace: float) -> None:
        """End the server, politely for `grace` seconds, and every process that descends from it."""
        if self._runs():
            self._signal_group(signal.SIGTERM)
            _until(grace, lambda: not self._runs())
        # Trackers end by themselves, once they have freed the shared memory that the others left.
        _until(TRACKER_SECONDS, lambda: self._kill_all(spare=_is_tracker))
        self._signal_group(signal.SIGKILL)
        _until(KILL_SECONDS, lambda: self._kill_all(spare=lambda pid: False))

    def _on_end(self, *_: object) -> None:
        self.must_end = True

    def _runs(self) -> bool:
        self._bury()
        return self.exit_code is None

    def _bury(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == self.server:
                    self.exit_code = os.waitstatus_to_exitcode(found[1])

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.server, number)

    def _kill_all(self, spare: Callable[[int], bool]) -> bool:
        """Kill what descends from us; whether nothing is left, spared ones included."""
        self._bury()
        left = descendants(os.getpid())
        for pid in left:
            if not spare(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return not left


def descendants(root: int) -> list[int]:
    """Process ids of everything below `root`; nothing where there is no /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        # A process may end between the listing and the reading.
        with contextlib.suppress(OSError, ValueError):
            pid = int(name)
            with open(f"/proc/{pid}/stat", "rb") as file:
                # "pid (name) state parent ...", where the name may hold anything.
                parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False


def _until(seconds: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(PAUSE_SECONDS)


def _end_with_keeper() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    """Linux alone knows these; elsewhere the process group is all that is ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """Keep one server until it ends; its exit code, 127 when it cannot be started."""
    trainer, grace, directory, *command = arguments
    try:
        return _keep(int(trainer), float(grace), command)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _keep(trainer: int, grace: float, command: list[str]) -> int:
    try:
        keeper = Keeper(trainer, command)
    except OSError as error:
        sys.stderr.write(f"Error: {command[0]} cannot be started: {error}\n")
        return 127
    keeper.watch()
    keeper.end(grace)
    code = keeper.exit_code
    return 1 if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
