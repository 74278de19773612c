"""One run from the supervised start to its summary.json, which is written last and makes the run a finished one."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import IO

from arms import EXAMPLES, TASKS, directory, files
from programs import Failed, call, commit, locked, rest_megatron
from summary import START, SUMMARY, final_values, read_truths, summarize_run, write_json

HEAVY = ("checkpoints", "hf", "rollouts", "evaluation")
MADE = ("evaluation", "data", "sft")
"""Of a start; the model, which is looked for, comes last."""
EVALUATION = ["rollout.group_size=4", "rollout.prompts_per_step=128", "rollout.max_batch_size=512"]


def prepare(out: Path, task: str) -> None:
    """The task's data, its supervised start, and how that answers the held-out prompts.

    Where start.json is there without data or model, as an archive of summaries leaves it, they are made anew aside, and
    must answer as it says: the finished runs began there. Raises Failed where they do not.
    """
    home = out / task
    with locked(home / "start.lock", wait=True) as lock:
        assert lock
        if not (home / START).exists():
            write_json(home / START, {"final": make_start(home, task, lock), "commit": commit()})
        elif not ((home / "data").exists() and (home / "sft/hf").exists()):
            aside = home / "again"
            aside.mkdir(exist_ok=True)
            final = make_start(aside, task, lock)
            if final != json.loads((home / START).read_text(encoding="utf-8"))["final"]:
                raise Failed(
                    f"{aside}/sft/hf answers the held-out prompts otherwise than {home / START} says: the finished "
                    f"runs in {home} began from another checkpoint, made by another commit or machine, and cannot be "
                    "compared with runs from this one. Use another --out"
                )
            remove_start(home)
            for name in MADE:
                (aside / name).rename(home / name)


def make_start(home: Path, task: str, lock: IO) -> dict[str, list[float]]:
    """Make the MADE of a task in `home`; returns how the model answers the held-out prompts."""
    remove_start(home)
    make = [sys.executable, str(EXAMPLES / "quickstart/make_task.py"), "--out", str(home / "data")]
    call([*make, *TASKS[task].recipe], home / "data.log", lock)
    overrides = [f"run.dir={home}/sft", f"sft.data={home}/data/sft.jsonl", "parallel.tensor_model_parallel_size=1"]
    rest_megatron("sft", [EXAMPLES / file for file in TASKS[task].sft], overrides, home / "sft.log", lock)
    evaluate(home, task, home / "sft/hf", home, 0, lock)
    return final_values(home / "evaluation/rollout.jsonl", read_truths(home / "data/heldout.jsonl"))


def remove_start(home: Path) -> None:
    """Delete what `make_start` made there, or some of it."""
    for name in MADE:
        shutil.rmtree(home / name, ignore_errors=True)


def do_run(out: Path, task: str, arm: str, seed: int) -> None:
    """Train, evaluate and summarize a run, unless it is finished or another invocation is at it."""
    home, run = out / task, out / directory(task, arm, seed)
    with locked(run.with_suffix(".lock"), wait=False) as lock:
        if lock is None or (run / SUMMARY).exists():
            return
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        about = {"task": task, "arm": arm, "seed": seed, "commit": commit()}
        started = time.monotonic()
        train(home, task, arm, seed, lock)
        trained = time.monotonic()
        evaluate(home, task, run / "hf", run, seed, lock)
        about["seconds"] = {"train": trained - started, "evaluation": time.monotonic() - trained}
        write_json(run / SUMMARY, about | summarize_run(run, home / "data"))
        for name in HEAVY:
            shutil.rmtree(run / name, ignore_errors=True)


def train(home: Path, task: str, arm: str, seed: int, lock: IO) -> None:
    """Reinforcement learning of one arm, without held-out prompts."""
    run = home.parent / directory(task, arm, seed)
    overrides = [
        f"run.dir={run}",
        f"run.seed={seed}",
        f"model.path={home}/sft/hf",
        f"data.train={home}/data/train.jsonl",
    ]
    rest_megatron("train", files(task, arm), overrides, run.with_suffix(".log"), lock)


def evaluate(home: Path, task: str, model: Path, run: Path, seed: int, lock: IO) -> None:
    """Four answers to every held-out prompt, in `run`/evaluation; runs of a seed draw alike."""
    overrides = [
        f"run.dir={run}/evaluation",
        f"run.seed={seed}",
        f"model.path={model}",
        f"data.train={home}/data/heldout.jsonl",
        *EVALUATION,
    ]
    rest_megatron("rollout", files(task), overrides, run.with_suffix(".evaluation.log"), lock)
