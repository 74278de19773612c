"""What is compared: tasks, the arms with the configurations laid over a task's, and where their runs lie."""

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1]
BASELINE = "GRPO"
MAIN = (BASELINE, "ResT", "ResT, moving base", "ResT, measured rule")
"""The arms that get the most seeds."""

_DAPO = "DAPO"
ARMS: dict[str, tuple[str, ...]] = {
    BASELINE: ("baselines/grpo.yaml",),
    "ResT": ("ablations/rest.yaml",),
    "ResT, moving base": ("ablations/moving_base.yaml",),
    "ResT, measured rule": ("ablations/measured.yaml",),
    "Dr.GRPO": ("baselines/dr_grpo.yaml",),
    _DAPO: ("baselines/dapo.yaml",),
    "ResT, collision rule": ("ablations/collision.yaml",),
    "ResT, no curriculum": ("ablations/no_curriculum.yaml",),
    "ResT, no CoT gradient": ("ablations/no_cot_gradient.yaml",),
    "published code": ("ablations/published_code.yaml",),
    "published weights": ("ablations/published_weights.yaml",),
    "GTPO-like": ("baselines/gtpo_like.yaml",),
    "top-entropy mask": ("baselines/top_entropy.yaml",),
    "RSI-S band": ("baselines/rsi_s.yaml",),
}
"""Name, and files below examples/. The order is that of tables and, seed by seed, of runs."""


@dataclass(frozen=True)
class Task:
    """One task: how its data are made, and its configurations below examples/."""

    recipe: tuple[str, ...]
    """Options of quickstart/make_task.py."""
    sft: tuple[str, ...]
    train: tuple[str, ...]
    dapo: str
    """The lengths that DAPO punishes."""


# Prompts enough that no run meets one twice: 50 steps of 16, up to four times as many where DAPO refills.
_PROMPTS = ("--train", "3200", "--heldout", "512")
TASKS = {
    "quick": Task(_PROMPTS, ("quickstart/sft.yaml",), ("compare/task.yaml",), "compare/dapo_quick.yaml"),
    "long": Task(
        (*_PROMPTS, "--fillers", "40", "60", "--spoiled", "0.4", "--keep-layout"),
        ("quickstart/sft.yaml", "compare/sft_long.yaml"),
        ("compare/task.yaml", "compare/task_long.yaml"),
        "compare/dapo_long.yaml",
    ),
}


def files(task: str, arm: str | None = None) -> list[Path]:
    """The configurations of a task, with an arm's on top."""
    own = () if arm is None else (*ARMS[arm], *([TASKS[task].dapo] if arm == _DAPO else []))
    return [EXAMPLES / file for file in (*TASKS[task].train, *own)]


def directory(task: str, arm: str, seed: int) -> str:
    """Where a run lies, below the comparison's directory."""
    plain = "".join(c if c.isalnum() else "-" for c in arm.lower())
    return f"{task}/{plain}/seed-{seed}"
