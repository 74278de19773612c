"""What the runs of one task say: each arm's outcomes, and their paired differences from the baseline."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from arms import ARMS, BASELINE, directory
from paired import Difference, difference, estimate, holm, seeds_needed
from summary import SUMMARY, Summary, read_summary

EFFECT = 0.02
"""The difference in exact answers that a comparison should be able to show."""
OUTCOMES: dict[str, Callable[[Summary, float], float]] = {
    "exact, over the run": lambda run, budget: run.area("exact", budget),
    "exact, at the end": lambda run, budget: run.end("exact"),
    "reward, over the run": lambda run, budget: run.area("reward", budget),
    "reward, at the end": lambda run, budget: run.end("reward"),
}
Runs = dict[str, dict[int, Summary]]
"""Of each arm its finished runs, by seed."""


def read_runs(out: Path, task: str) -> Runs:
    """The finished runs of a task; arms without any are left out."""
    found = {}
    for name in ARMS:
        paths = (out / directory(task, name, 0)).parent.glob(f"seed-*/{SUMMARY}")
        found[name] = {run.seed: run for run in sorted(map(read_summary, paths), key=lambda run: run.seed)}
    return {name: own for name, own in found.items() if own}


def answer_budget(runs: Runs) -> float:
    """Sampled answers of the run that sampled fewest. The outcomes over the run end there.

    So an arm that samples more per step (DAPO's refill) does not gain by it.
    """
    return float(min(run.answers.sum() for own in runs.values() for run in own.values()))


def compare(runs: Runs) -> dict:
    """All of a task's figures, as JSON: `arm_row`s, and which differences hold after correction for their number."""
    budget = answer_budget(runs)
    rows = [arm_row(runs, name, budget) for name in runs]
    for outcome in OUTCOMES:
        cells = [row["outcomes"][outcome]["difference"] for row in rows if row["paired_seeds"]]
        for cell, p in zip(cells, holm([cell["p"] for cell in cells]), strict=True):
            cell |= {"p_holm": p, "differs": p is not None and p < 0.05}
    return {"answers": budget, "comparisons": sum(len(row["paired_seeds"]) > 1 for row in rows), "arms": rows}


def arm_row(runs: Runs, name: str, budget: float) -> dict:
    """An arm's outcomes; differences are over the seeds that it shares with the baseline.

    by_prompt: those of exact and reward at the end over prompts, given the runs. seeds_needed: to show `EFFECT`.
    """
    own, base = runs[name], runs.get(BASELINE, {})
    shared = sorted(own.keys() & base.keys()) if name != BASELINE else []
    row: dict = {"arm": name, "seeds": list(own), "paired_seeds": shared, "outcomes": {}}
    row["answers"] = float(np.mean([run.answers.sum() for run in own.values()]))
    for outcome, value in OUTCOMES.items():
        values = np.array([value(run, budget) for run in own.values()])
        row["outcomes"][outcome] = {"runs": values.tolist(), **asdict(estimate(values))}
        if shared:
            pair = (np.array([value(some[seed], budget) for seed in shared]) for some in (own, base))
            row["outcomes"][outcome]["difference"] = difference_cell(difference(*pair), outcome)
    if shared:
        row["by_prompt"] = {measure: asdict(by_prompt(own, base, shared, measure)) for measure in ("exact", "reward")}
    return row


def difference_cell(found: Difference, outcome: str) -> dict:
    """A difference as JSON, with the seeds that `EFFECT` would need where it is one of exact answers."""
    known = outcome.startswith("exact") and found.sd is not None
    return asdict(found) | {"seeds_needed": seeds_needed(EFFECT, found.sd) if known and found.sd is not None else None}


def by_prompt(own: dict[int, Summary], base: dict[int, Summary], seeds: list[int], measure: str) -> Difference:
    """The paired difference after the last step over held-out prompts, each prompt's mean over the seeds first.

    It holds for these runs alone: what another seed would change is not in its interval.
    """
    means = (np.mean([some[seed].final[measure] for seed in seeds], axis=0) for some in (own, base))
    return difference(*means)
