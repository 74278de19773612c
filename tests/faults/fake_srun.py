"""What `srun` does with one node: tasks with Slurm's variables, a signal for all of them, and its exit code.

The exit code follows Slurm's own `_task_finish`: the highest of the tasks, but a signal that ended one of them wins.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

KILLED_AFTER = 30.0


def main(words: list[str]) -> int:
    """Run the command behind the options as SLURM_NTASKS tasks."""
    options = dict(word.lstrip("-").split("=", 1) for word in words if word.startswith("--"))
    command = words[len(options) :]
    tasks = [subprocess.Popen(command, env=_variables(rank)) for rank in range(int(os.environ["SLURM_NTASKS"]))]
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: _signal(tasks, number))
    Path("srun.pid").write_text(str(os.getpid()))
    waited = None
    while any(task.poll() is None for task in tasks):
        time.sleep(0.01)
        codes = [task.returncode for task in tasks if task.poll() is not None]
        if codes and waited is None:
            waited = time.monotonic()
            if options["kill-on-bad-exit"] == "1" and any(codes):
                _signal(tasks, signal.SIGTERM)
        if waited is not None and time.monotonic() > waited + min(float(options.get("wait", 0)) or 1e9, KILLED_AFTER):
            _signal(tasks, signal.SIGKILL)
    codes = [task.returncode for task in tasks]
    return max((128 - code for code in codes if code < 0), default=max(codes))


def _variables(rank: int) -> dict[str, str]:
    numbers = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_STEP_ID": 0}
    step = {"SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"], "SLURM_STEP_TASKS_PER_NODE": os.environ["SLURM_NTASKS"]}
    return {**os.environ, **step, **{k: str(v) for k, v in numbers.items()}, "SLURM_STEP_NODELIST": "127.0.0.1"}


def _signal(tasks: list[subprocess.Popen], number: int) -> None:
    for task in tasks:
        task.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
