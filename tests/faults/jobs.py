"""The program as a job of one or more processes, started in a second.

Each rank is a process of its own in a session of its own, forked from a server that has imported everything already
(`forks`); from there on it is `python -m rest_megatron` like any other.
"""

import contextlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rest_megatron.distributed.launch import free_port
from tests.forks import CONTEXT
from tests.system.runs import environment

Hook = Callable[[], None]


class Job:
    """A running job.

    Args:
        words: command and overrides.
        directory: where it runs, and where each rank's output goes, a file per rank; a later start appends.
        ranks: how many processes.
        hooks: what a rank does before the program starts, by rank; picklable.
        variables: of the environment, on top of a fresh shell's.
    """

    def __init__(
        self,
        words: Sequence[str],
        directory: Path,
        ranks: int = 1,
        hooks: Mapping[int, Hook] | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        self.outputs = [directory / f"output-{rank}.txt" for rank in range(ranks)]
        port = free_port()
        self.processes = []
        for rank, output in enumerate(self.outputs):
            places = _torchrun(rank, ranks, port) if ranks > 1 else {}
            environ = environment(**places, **(variables or {}))
            arguments = (list(words), directory, environ, output, (hooks or {}).get(rank))
            self.processes.append(CONTEXT.Process(target=_run, args=arguments, daemon=True))
        for process in self.processes:
            process.start()

    def signal(self, number: int, rank: int = 0) -> None:
        """Send one rank a signal."""
        os.kill(self.processes[rank].pid, number)

    def runs(self) -> bool:
        """Whether every rank still runs."""
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        """End every rank and all it has started at once, with SIGKILL."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.join()

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Every rank's exit code, -n after signal n. A job that takes longer is killed and fails the test."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.kill()
            raise AssertionError(f"exit codes {codes} after {seconds:g} s\n{self.output()}")
        return codes

    def output(self) -> str:
        """What all ranks have written, standard output and error together, rank after rank."""
        return "".join(path.read_text(errors="replace") for path in self.outputs if path.exists())


def _torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _run(words: list[str], directory: Path, environ: dict[str, str], output: Path, hook: Hook | None) -> None:
    """Become the program."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(directory)
    sys.argv = ["rest_megatron", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hook is not None:
        hook()
    runpy.run_module("rest_megatron", run_name="__main__")
