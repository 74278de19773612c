"""One table and one plot of a finished comparison: comparison.md, comparison.json, comparison.png.

`python examples/compare/summarize.py --out runs/compare`. Every held-out answer is scored anew by the default reward at
the end of its ramp, so arms that train on another reward are measured alike. Values are read at equal numbers of
sampled answers: where an arm samples more per step (DAPO's refill), its curve ends after fewer steps.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arms import ARMS, BASELINE, directory
from matplotlib.figure import Figure
from scipy import stats

from rest_megatron.reward.paper import parse_ground_truth, score

MEASURES = {"exact": "exact answers", "total": "reward (highest 4)"}


@dataclass(frozen=True)
class Curve:
    """Held-out means of one run at growing numbers of sampled answers; the first point is before training."""

    answers: np.ndarray
    values: dict[str, np.ndarray]

    def final(self, measure: str, budget: float) -> float:
        """The value when `budget` answers were sampled, between two evaluations by a straight line."""
        return float(np.interp(budget, self.answers, self.values[measure]))

    def area(self, measure: str, budget: float) -> float:
        """The mean value over the run up to `budget` answers."""
        inside = self.answers < budget
        x = np.append(self.answers[inside], budget)
        y = np.append(self.values[measure][inside], self.final(measure, budget))
        return float(np.trapezoid(y, x) / budget)


def main() -> None:
    """Read the command line and the runs, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparison")
    out = parser.parse_args().out
    truths = read_truths(out / "data/heldout.jsonl")
    seeds = complete_seeds(out)
    curves = {name: [read_curve(out / directory(name, seed), truths) for seed in seeds] for name in ARMS}
    budget = min(curve.answers[-1] for runs in curves.values() for curve in runs)
    rows = [summary(name, curves, budget) for name in ARMS]
    (out / "comparison.json").write_text(
        json.dumps({"seeds": seeds, "answers": int(budget), "arms": rows}, indent=1) + "\n"
    )
    (out / "comparison.md").write_text(table(rows, len(seeds), int(budget), len(truths)))
    plot(curves, budget).savefig(out / "comparison.png", dpi=110)


def read_truths(path: Path) -> list:
    """The held-out prompts' wanted answers, by row number."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [parse_ground_truth(row["reward_model"]["ground_truth"]) for row in rows]


def complete_seeds(out: Path) -> list[int]:
    """Seeds that every arm has finished; paired differences need whole pairs."""
    seeds = sorted(
        int(path.name.removeprefix("seed-")) for path in (out / directory(BASELINE, 0)).parent.glob("seed-*[0-9]")
    )
    done = [seed for seed in seeds if all((out / directory(name, seed) / "hf").exists() for name in ARMS)]
    if len(done) < 2:
        raise SystemExit(f"{out}: {len(done)} seeds are finished in every arm; an interval needs at least 2")
    return done


def read_curve(run: Path, truths: Sequence) -> Curve:
    """The curve of one run, from its dumps of held-out answers."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    sampled = np.cumsum([0.0] + [row["rollout/answers"] for row in metrics])
    steps = sorted(int(path.stem.removeprefix("eval-")) for path in (run / "rollouts").glob("eval-*.jsonl"))
    scores = [read_scores(run / "rollouts" / f"eval-{step}.jsonl", truths) for step in steps]
    values = {
        "exact": np.array([np.mean([s.parts["exact"] for s in own]) for own in scores]),
        "total": np.array([np.mean([s.total for s in own]) for own in scores]),
    }
    return Curve(sampled[steps], values)


def read_scores(path: Path, truths: Sequence) -> list:
    """The dumped answers, scored by the default reward."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [score(row["text"].encode(), truths[row["prompt"]], progress=1.0) for row in rows]


def summary(name: str, curves: dict[str, list[Curve]], budget: float) -> dict:
    """Mean and interval of an arm's final values and areas, and of their paired differences from the baseline."""
    row: dict = {"arm": name}
    for measure in MEASURES:
        for kind in ("final", "area"):
            own, base = (
                np.array([getattr(curve, kind)(measure, budget) for curve in curves[arm]]) for arm in (name, BASELINE)
            )
            row[f"{measure}_{kind}"] = {
                "runs": own.tolist(),
                "mean": float(own.mean()),
                "interval": interval(own),
                "difference": float((own - base).mean()),
                "difference_interval": interval(own - base),
            }
    return row


def interval(values: np.ndarray, level: float = 0.95) -> float:
    """Half width of the `level` interval of the mean of `values`, at least two of them, by Student's t."""
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))


def table(rows: list[dict], num_seeds: int, budget: int, num_prompts: int) -> str:
    """Markdown: one line per arm."""
    cells = [("exact", "final"), ("exact", "area"), ("total", "final"), ("total", "area")]
    names = {"final": "at the end", "area": "mean over the run"}
    head = ["arm", *(f"{MEASURES[m]}, {names[k]}" for m, k in cells), f"exact, mean over the run, against {BASELINE}"]
    lines = [
        f"{num_seeds} seeds, {budget} sampled answers a run, {num_prompts} held-out prompts. Mean and half width of "
        "the 95% interval (Student's t over seeds); the last column is of paired differences.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        values = [row[f"{m}_{k}"] for m, k in cells]
        shown = [f"{value['mean']:.3f} ± {value['interval']:.3f}" for value in values]
        paired = row["exact_area"]
        shown.append(f"{paired['difference']:+.3f} ± {paired['difference_interval']:.3f}")
        lines.append("| " + " | ".join([row["arm"], *shown]) + " |")
    return "\n".join(lines) + "\n"


def plot(curves: dict[str, list[Curve]], budget: float) -> Figure:
    """Mean curves over seeds, one line per arm."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    grid = np.linspace(0, budget, 50)
    for axes, (measure, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for name, runs in curves.items():
            mean = np.mean([np.interp(grid, run.answers, run.values[measure]) for run in runs], axis=0)
            axes.plot(grid, mean, label=name, linewidth=1.4, color="black" if name == BASELINE else None)
        axes.set(title=f"held-out {label}", xlabel="sampled answers")
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main()
