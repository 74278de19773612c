"""The reward and the tools of the runs here, which do what the variable FAULT says: "PLACE STEP ACT...".

PLACE: rollout (in a tool's answer), reward, update (a third of a second after the first reward), checkpoint (while one
is written), evaluation. STEP counts from 1; an evaluation's is that of the step before it. ACT: a signal's name,
sleep:SECONDS, or raise. The file `fault` appears just before.
"""

import os
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

HELD_OUT = "held out"
_last_step = 0
_done = False


def reward(response: str, ground_truth: str, *, progress: float, step: int) -> float:
    """Another number for every other answer, so that every group teaches something."""
    global _last_step
    if ground_truth == HELD_OUT:
        _act("evaluation", _last_step)
    else:
        _last_step = step
        _act("reward", step)
        _act("update", step, after=lambda: time.sleep(0.3))
        _act("checkpoint", step, after=_until_one_is_written)
    return zlib.crc32(response.encode("utf-8", "replace")) % 1000 / 1000


def respond(response: str, messages: list[dict], *, prompt: str) -> list[dict]:
    """Tools that answer with a number."""
    _act("rollout", _last_step + 1)
    return [{"role": "tool", "content": str(len(response))}]


def _act(place: str, step: int, after: Callable[[], None] | None = None) -> None:
    """Do what FAULT says, once; where there is something to come `after`, in a thread of its own."""
    global _done
    wanted, number, *acts = os.environ.get("FAULT", "nowhere 0").split()
    if _done or (place, step) != (wanted, int(number)):
        return
    _done = True
    if after is None:
        _do(acts)
    else:
        threading.Thread(target=lambda: (after(), _do(acts)), daemon=True).start()


def _do(acts: list[str]) -> None:
    Path("fault").touch()
    for act in acts:
        name, _, seconds = act.partition(":")
        if name == "raise":
            raise RuntimeError("this reward is broken")
        elif name == "sleep":
            time.sleep(float(seconds))
        else:
            os.kill(os.getpid(), signal.Signals[name])


def _until_one_is_written() -> None:
    while not any(Path("run/checkpoints").glob("*.tmp")):
        time.sleep(0.0005)
