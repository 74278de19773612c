"""summary.json: all that is kept of a run's answers, scored anew by the default reward at the end of its ramp.

So arms that train on another reward are measured alike. No run may meet a prompt twice: then each step's answers are to
prompts that the policy has not been trained on, and their mean over the run is a held-out one.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rest_megatron.reward.paper import GroundTruth, parse_ground_truth, score

SUMMARY = "summary.json"
START = "start.json"
MEASURES = ("exact", "reward", "format")
NOT_RESULTS = ("commit", "machine", "seconds")
"""Keys that a repetition of a run may have otherwise."""


@dataclass(frozen=True)
class Summary:
    """What summary.json says of one run, as arrays."""

    seed: int
    answers: np.ndarray
    """Sampled at each step."""
    steps: dict[str, np.ndarray]
    """Of each measure the mean over each step's answers."""
    final: dict[str, np.ndarray]
    """Of each measure the mean over each held-out prompt's answers, after the last step."""

    def area(self, measure: str, budget: float) -> float:
        """The mean over the first `budget` answers of the run, a step's answers all counting as their mean."""
        before = np.cumsum(self.answers) - self.answers
        counted = np.clip(budget - before, 0, self.answers)
        return float(counted @ self.steps[measure] / counted.sum())

    def end(self, measure: str) -> float:
        """The mean over the held-out prompts after the last step."""
        return float(self.final[measure].mean())


def read_summary(path: Path) -> Summary:
    """The summary that `summarize_run` made."""
    data = json.loads(path.read_text(encoding="utf-8"))
    steps, final = ({name: np.array(v) for name, v in data[key].items()} for key in ("steps", "final"))
    return Summary(data["seed"], np.array(data["answers"]), steps, final)


def differences(one: Mapping, other: Mapping) -> list[str]:
    """The keys of two summaries' results that are not equal to the last bit."""
    names = sorted((one.keys() | other.keys()) - set(NOT_RESULTS))
    return [name for name in names if one.get(name) != other.get(name)]


def summarize_run(run: Path, data: Path) -> dict:
    """Curves, final values and shares of the weight of a run that is trained and evaluated.

    Raises ValueError when the run met a prompt twice.
    """
    truths = read_truths(data / "train.jsonl")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [scored(run / "rollouts" / f"step-{step}.jsonl", truths) for step in range(1, len(metrics) + 1)]
    check_fresh([{row["prompt"] for row in own} for own in rows], run)
    return {
        "machine": machine(),
        "answers": [len(own) for own in rows],
        "steps": {name: [float(np.mean([row[name] for row in own])) for own in rows] for name in MEASURES},
        "final": final_values(run / "evaluation/rollout.jsonl", read_truths(data / "heldout.jsonl")),
        "weight_mass": {"first": weight_mass(metrics[0]), "last": weight_mass(metrics[-1])},
    }


def final_values(path: Path, truths: Sequence[GroundTruth]) -> dict[str, list[float]]:
    """Of each measure the mean over the answers to each prompt of a `rollout` command's rows, by row number."""
    rows = scored(path, truths)
    own = [[row for row in rows if row["prompt"] == prompt] for prompt in range(len(truths))]
    return {name: [float(np.mean([row[name] for row in group])) for group in own] for name in MEASURES}


def read_truths(path: Path) -> list[GroundTruth]:
    """The wanted answers of a file of prompts, by row number."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [parse_ground_truth(row["reward_model"]["ground_truth"]) for row in rows]


def scored(path: Path, truths: Sequence[GroundTruth]) -> list[dict]:
    """Prompt and measures of every dumped answer."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = [score(row["text"].encode(), truths[row["prompt"]], progress=1.0) for row in rows]
    return [
        {"prompt": row["prompt"], "exact": own.parts["exact"], "reward": own.total, "format": own.parts["format"]}
        for row, own in zip(rows, scores, strict=True)
    ]


def check_fresh(prompts: Sequence[set[int]], run: Path) -> None:
    """Raise ValueError unless every step's prompts are its own."""
    met: set[int] = set()
    for step, own in enumerate(prompts, start=1):
        if again := met & own:
            raise ValueError(f"{run}: step {step} met {len(again)} prompts again; data.train must have more rows")
        met |= own


def weight_mass(metrics: Mapping[str, float]) -> dict[str, float]:
    """The share of the token weights that each region has at a step."""
    prefix = "weight_mass/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def machine() -> str:
    """The processor that a run ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} CPUs"


def write_json(path: Path, data: Mapping) -> None:
    """Write a whole file or none."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
