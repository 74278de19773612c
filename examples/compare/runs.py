"""One run from the supervised start to its summary.json, which is written last and makes the run a finished one."""

import shutil
import sys
import time
from pathlib import Path
from typing import IO

from arms import EXAMPLES, TASKS, directory, files
from programs import call, commit, locked, rest_megatron
from summary import START, SUMMARY, final_values, read_truths, summarize_run, write_json

HEAVY = ("checkpoints", "hf", "rollouts", "evaluation")
EVALUATION = ["rollout.group_size=4", "rollout.prompts_per_step=128", "rollout.max_batch_size=512"]


def prepare(out: Path, task: str) -> None:
    """The task's data, its supervised start, and how that answers the held-out prompts."""
    home = out / task
    with locked(home / "start.lock", wait=True) as lock:
        assert lock
        if (home / START).exists():
            return
        for name in ("data", "sft", "evaluation"):
            shutil.rmtree(home / name, ignore_errors=True)
        make = [sys.executable, str(EXAMPLES / "quickstart/make_task.py"), "--out", str(home / "data")]
        call([*make, *TASKS[task].recipe], home / "data.log", lock)
        overrides = [f"run.dir={home}/sft", f"sft.data={home}/data/sft.jsonl", "parallel.tensor_model_parallel_size=1"]
        rest_megatron("sft", [EXAMPLES / file for file in TASKS[task].sft], overrides, home / "sft.log", lock)
        evaluate(home, task, home / "sft/hf", home, 0, lock)
        truths = read_truths(home / "data/heldout.jsonl")
        write_json(home / START, {"final": final_values(home / "evaluation/rollout.jsonl", truths), "commit": commit()})


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
