"""An arm's process as the benchmark sees it."""

import dataclasses
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .arms import Arm

ROOT = Path(__file__).resolve().parent.parent.parent
EXIT_LIMIT_S = 60


class NotInstalled(Exception):
    """The package that an arm needs is not there."""


class Process:
    """Takes a step whenever it is asked to, one thread, in memory of its own."""

    def __init__(self, arm: Arm, python: str, job: dict[str, Any]) -> None:
        self.arm = arm
        self.errors = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            [python, "-m", "benchmarks.updating.worker", json.dumps(job | {"arm": dataclasses.asdict(arm)})],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def step(self) -> dict[str, Any]:
        """One step's figures. Raises NotInstalled, and RuntimeError with what the process wrote when it has died."""
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            self.child.stdin.write("step\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            line = ""
        else:
            line = self.child.stdout.readline()
        if line:
            return json.loads(line)
        code = self.child.wait()
        self.errors.seek(0)
        written = self.errors.read().strip().splitlines() or [""]
        if written[-1].startswith("ModuleNotFoundError"):
            raise NotInstalled(written[-1].partition(": ")[2])
        raise RuntimeError(f"{self.arm.name}: its process ended with exit code {code}:\n" + "\n".join(written[-20:]))

    def close(self) -> None:
        """End it."""
        self.child.communicate(timeout=EXIT_LIMIT_S)
        self.errors.close()
