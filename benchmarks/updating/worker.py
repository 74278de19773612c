"""The process of one arm: `python -m benchmarks.updating.worker JOB`, JSON lines on standard input and output.

JOB is JSON: {"arm", "shape", "groups", "at_once", "model"}. It answers each line of its input, whatever it says, with a
step's figures. The first step is not to be timed: PyTorch counts its operations.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import high_water_mark, restart_high_water_mark

from .arms import Arm
from .contestant import Contestant
from .flops import counted
from .shapes import Step, get_shape, make_step


def importing(arm: Arm) -> Callable[[Path, Step, int], Contestant]:
    """Import what an arm needs; the function that opens it. Raises ImportError where that is not installed."""
    if arm.who == "hf":
        from .hugging_face import HuggingFace

        return HuggingFace
    if arm.who == "trl":
        from .trl_trainer import Trl

        return lambda *step: Trl(arm, *step)
    from .ours import Ours

    return lambda model, step, at_once: Ours(arm, model, step, at_once * max(step.lengths))


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Its result, and seconds of this process and on the clock."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - clock}


def take_step(contestant: Contestant, arm: Arm, idle: int | None) -> dict:
    """Seconds of both parts, loss and gradient norm, and bytes at the worst moment.

    idle: what the process had before the model was made; None where the kernel keeps no high-water mark.
    """
    before = restart_high_water_mark()
    old, passes = None, {"cpu": 0.0, "wall": 0.0}
    if not arm.one_pass:
        old, passes = timed(contestant.log_probs)
    done, update = timed(lambda: contestant.update(old))
    figures = {"log_probs": passes, "update": update, "loss": done.loss, "grad_norm": done.grad_norm}
    if before is None or idle is None:
        return figures
    return figures | {"total_bytes": high_water_mark() - idle, "step_bytes": high_water_mark() - before}


def serve(job: dict[str, Any], answer: Callable[[dict], None]) -> None:
    """Open the arm and take a step for every line of standard input."""
    arm = Arm(**job["arm"])
    step = make_step(get_shape(job["shape"], job["groups"], job["at_once"]), arm.zeros)
    open_arm = importing(arm)
    idle = restart_high_water_mark()
    contestant = open_arm(Path(job["model"]), step, job["at_once"])
    first = True
    for _ in sys.stdin:
        if not first:
            answer(take_step(contestant, arm, idle))
            continue
        with counted(contestant.embedding) as found:
            figures = take_step(contestant, arm, idle)
        answer(figures | found)
        first = False


def main() -> None:
    """Keep standard output for the answers: libraries write there, too."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)
    serve(json.loads(sys.argv[1]), lambda figures: answers.write(json.dumps(figures) + "\n"))


if __name__ == "__main__":
    main()
