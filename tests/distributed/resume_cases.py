"""Training runs that are stopped and go on, inside gloo workers, on answers that depend on seed and prompt alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from safetensors import safe_open

from rest_megatron import session
from rest_megatron.commands import sft, train
from rest_megatron.config import load
from rest_megatron.config.check import check_run, check_run_dir
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import Preempted
from rest_megatron.rollout import build
from rest_megatron.types import Request, Sample
from tests.distributed.training_cases import ScriptedEngine, read_metrics


class SeededEngine(ScriptedEngine):
    """A scripted engine whose answers do not depend on what was asked before."""

    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int):
        return [
            [self._answer(request.prompt_ids, seed + 3 * request.number + i) for i in range(group_size)]
            for request in requests
        ]

    def _answer(self, prompt, number: int) -> Sample:
        ids = self.answers[number * 3 // 2 % len(self.answers)]
        return Sample(tuple(prompt), ids, (self.uniform,) * len(ids), "stop", self.version)


class StopsAt(Watch):
    """A reason to stop when the run looks the n-th time whether there is one; 0: never."""

    n = 0
    looked = 0

    def exchange_reasons(self) -> str | None:
        type(self).looked += 1
        return "a test" if 0 < self.n <= self.looked else None


def ran(launch: Launch, command: str, overrides: Sequence[str], engine: type | None, stop_at: int = 0) -> int:
    """Run a command as the program does. Returns how often rank 0 looked whether to stop, -1 when it was stopped."""
    config = load([], overrides)
    check_run(config, launch.world_size)
    check_run_dir(config, command)
    # Rank 0 alone: how often the others look depends on the clock.
    watch = type("StopsHere", (StopsAt,), {"n": stop_at if launch.rank == 0 else 0})
    patches = [mock.patch.object(session, "Watch", watch), mock.patch.object(session, "shutdown")]
    if engine is not None:
        patches.append(mock.patch.object(build, "Sampler", engine))
    for patch in patches:
        patch.start()
    try:
        {"train": train.main, "sft": sft.main}[command](config, launch)
    except Preempted:
        return -1
    finally:
        mock.patch.stopall()
    return watch.looked


def ran_until_killed_in(launch: Launch, place: str, *arguments) -> int:
    """`ran`, killed in a function that is named by its module."""
    with mock.patch(place, side_effect=RuntimeError(f"killed in {place}")):
        return ran(launch, *arguments)


def outcome(run_dir: Path, steps: int) -> dict:
    """Everything of a finished run that must not depend on whether it was stopped, bit for bit."""
    tensors = {}
    checkpoint = run_dir / "checkpoints" / f"step-{steps:08d}"
    for path in [*sorted((checkpoint / "state").iterdir()), *sorted((run_dir / "hf").glob("*.safetensors"))]:
        with safe_open(path, "pt") as file:
            tensors |= {f"{path.name}/{key}": file.get_tensor(key).flatten().tolist() for key in file.keys()}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    evaluations = run_dir / "eval.jsonl"  # a supervised run has none
    rows = [json.loads(line) for line in evaluations.read_text().splitlines()] if evaluations.exists() else []
    dumps = {path.name: path.read_text() for path in sorted(run_dir.glob("rollouts/*.jsonl"))}
    return {
        "tensors": tensors,
        "state": manifest["state"],
        "metrics": repr(read_metrics(run_dir)),
        "evaluations": rows,
        "dumps": dumps,
    }
