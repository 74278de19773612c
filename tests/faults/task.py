"""A run of four steps that take a tenth of a second each, and what two such runs must have in common."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rewards import HELD_OUT
from tests.system.runs import make_run, metrics

STEPS = 4
REWARDS = Path(__file__).parent / "rewards.py"


@dataclass(frozen=True)
class Task:
    """Overrides of the run, without its directory, which is `name` in `directory`."""

    words: list[str]
    directory: Path
    name: str = "run"

    @property
    def run_dir(self) -> Path:
        """Of the run that `train` makes."""
        return self.directory / self.name

    @property
    def checkpoints(self) -> Path:
        """Where it keeps them."""
        return self.run_dir / "checkpoints"

    def at(self, name: str) -> "Task":
        """The same with another run_dir."""
        return replace(self, name=name)

    def train(self, *overrides: str) -> list[str]:
        """Command and overrides of a run in run_dir."""
        return ["train", *self.words, f"run.dir={self.run_dir}", *overrides]


def make_task(directory: Path) -> list[str]:
    """A tiny model, four prompts, which are two steps, and four held-out ones: the overrides to train on them."""
    return small(make_run(directory), directory)


def small(words: list[str], directory: Path) -> list[str]:
    """The overrides of a run in `directory`, as small as the runs here."""
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["reward_model"]["ground_truth"] = HELD_OUT
    (directory / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data.eval": directory / "held-out.jsonl",
        "train.steps": STEPS,
        "rollout.max_new_tokens": 8,
        "train.max_tokens_per_micro_batch": 80,
        "reward.function": f"{REWARDS}:reward",
        "checkpoint.interval": 1,
    }
    return words + [f"{name}={value}" for name, value in settings.items()]


def outcome(run_dir: Path) -> dict[str, Any]:
    """What a run leaves, but for what the clock says: weights, metrics, evaluations, every answer of every step."""
    answers = {path.name: path.read_text() for path in sorted((run_dir / "rollouts").iterdir())}
    weights = {path.name: path.read_bytes() for path in sorted((run_dir / "hf").glob("*.safetensors"))}
    return {"metrics": metrics(run_dir), "eval": (run_dir / "eval.jsonl").read_text(), **answers, **weights}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two outcomes are the same bit for bit; names what differs, not the bytes."""
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def same_but_for_rounding(found: list[dict], expected: list[dict]) -> None:
    """The metrics of two layouts agree; a missing value (null) only with another."""
    assert len(found) == len(expected) > 0
    for row, want in zip(found, expected, strict=True):
        numbers = [{k: math.nan if v is None else v for k, v in of.items()} for of in (row, want)]
        assert numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=2e-5, nan_ok=True)
