"""The comparison as pictures: exact answers over the run, and the paired differences with their intervals."""

import numpy as np
from arms import BASELINE, MAIN
from comparison import OUTCOMES, Runs
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLOCK = 5
"""Steps that a point of a curve is the mean of."""


def picture(runs: dict[str, Runs], tasks: dict[str, dict]) -> Figure:
    """A row for each task: curves, then a forest plot of each outcome in exact answers."""
    shown = [outcome for outcome in OUTCOMES if outcome.startswith("exact")]
    figure = Figure(figsize=(15, 5 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 1 + len(shown), squeeze=False, width_ratios=[2] + [1] * len(shown))
    for row, name in zip(grid, tasks, strict=True):
        curves(row[0], runs[name])
        row[0].set_title(f"{name}: exact answers of each step")
        for axes, outcome in zip(row[1:], shown, strict=True):
            forest(axes, tasks[name]["arms"], outcome)
    return figure


def curves(axes: Axes, runs: Runs) -> None:
    """Mean over seeds, in blocks of steps, over sampled answers."""
    for name, own in runs.items():
        points = [blocks(run.answers, run.steps["exact"]) for run in own.values()]
        x, y = (np.mean(part, axis=0) for part in zip(*points, strict=True))
        main = name in MAIN
        colour = "black" if name == BASELINE else None
        axes.plot(x, y, label=f"{name} ({len(own)})", linewidth=2 if main else 0.9, color=colour)
    axes.set(xlabel="sampled answers")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def blocks(answers: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers sampled by the middle of each block of steps, and the block's mean."""
    starts = np.arange(0, len(values), BLOCK)
    sizes = np.diff(np.append(starts, len(values)))
    middle = np.cumsum(answers) - answers / 2
    return np.add.reduceat(middle, starts) / sizes, np.add.reduceat(values, starts) / sizes


def forest(axes: Axes, rows: list[dict], outcome: str) -> None:
    """Paired differences with 95% intervals that are not corrected; filled where they hold after the correction."""
    rows = [row for row in rows if row["paired_seeds"]]
    for height, row in enumerate(reversed(rows)):
        cell = row["outcomes"][outcome]["difference"]
        fill = "tab:blue" if cell["differs"] else "white"
        axes.errorbar(
            cell["mean"], height, xerr=cell["half_width"] or 0, fmt="o", color="tab:blue", markerfacecolor=fill
        )
    labels = [f"{row['arm']} ({len(row['paired_seeds'])})" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(f"{outcome}, against {BASELINE}", fontsize=9)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", alpha=0.25)
