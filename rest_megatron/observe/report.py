"""The report of a finished run: curves as report.png, and report.html, which needs no other file and no network."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rest_megatron.errors import DataError
from rest_megatron.observe.metrics import EVALUATIONS, METRICS, read_rows
from rest_megatron.observe.page import render
from rest_megatron.observe.picture import COLORS, subplots, to_png
from rest_megatron.observe.regions import REGIONS
from rest_megatron.utils.text import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELD_OUT = {
    "reward": "reward/mean",
    "format": "reward/format",
    "tool name": "reward/name",
    "parameter names": "reward/parameter_names",
    "parameter values": "reward/parameter_values",
    "exact answers": "reward/exact",
    "answer length": "rollout/length",
}
# Title, scale, label -> metric. Region entropies differ by two orders of magnitude.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("reward", "linear", {"mean": "reward/mean", "correctness": "reward/correctness"}),
    ("accuracy", "linear", {label: HELD_OUT[label] for label in list(HELD_OUT)[1:6]}),
    ("entropy by region (nats)", "log", {name: f"entropy/{name}" for name in REGIONS}),
    ("weight by region", "linear", {name: f"weight/{name}" for name in REGIONS}),
    ("share of the weight by region", "linear", {name: f"weight_mass/{name}" for name in REGIONS}),
    ("clip fraction by region", "linear", {name: f"clip_fraction/{name}" for name in REGIONS}),
    ("probability of sampled tokens by region", "linear", {name: f"probability/{name}" for name in REGIONS}),
    ("answer length (tokens)", "linear", {"mean": "rollout/length"}),
    (
        "length bias of what is trained",
        "linear",
        {
            "correlation with the advantage": "length_bias/correlation",
            "better / worse answers": "length_bias/better",
            "weighted / plain mean": "length_bias/weight",
        },
    ),
    (
        "effective sample size",
        "linear",
        {"tokens": "mismatch/effective_sample_size", "answers": "mismatch/effective_sample_size_answers"},
    ),
    ("gradient norm", "linear", {"before clipping": "actor/grad_norm"}),
    (
        "gradient variance over groups",
        "log",
        {
            "these weights": "gradient_variance/weights/variance",
            "uniform": "gradient_variance/uniform/variance",
            "these weights / squared mean": "gradient_variance/weights/relative",
            "uniform / squared mean": "gradient_variance/uniform/relative",
        },
    ),
)
COLUMNS = 3
FEW_POINTS = 50
FACTS = (
    ("model", "model", "path"),
    ("method", "method", "preset"),
    ("prompts", "data", "train"),
    ("held-out prompts", "data", "eval"),
    ("prompts per step", "rollout", "prompts_per_step"),
    ("answers per prompt", "rollout", "group_size"),
    ("learning rate", "optim", "lr"),
    ("seed", "run", "seed"),
)


def write_report(run_dir: Path) -> Path:
    """Write report.png and report.html from the run's metrics, evaluations and configuration; returns the latter.

    Raises DataError when the run has no metrics.
    """
    rows = read_rows(run_dir / METRICS)
    if not rows:
        raise DataError(f"{run_dir / METRICS} holds no metrics: there is nothing to report")
    evaluations = read_rows(run_dir / EVALUATIONS)
    config_file = run_dir / "config.yaml"
    config = config_file.read_text(encoding="utf-8") if config_file.exists() else ""
    png = _draw(rows, evaluations)
    (run_dir / "report.png").write_bytes(png)
    page = render(
        "report",
        title=f"Run {run_dir.resolve().name}",
        held_out=_held_out(evaluations),
        curves=png,
        panels=[title for title, _, _ in PANELS],
        facts=_facts(rows, config),
        config=config,
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def final_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Held-out metrics before and after training, for the terminal."""
    lines = [f"{'held-out prompts':<18}{'before':>10}{'after':>10}{'change':>10}"]
    lines += [f"{name:<18}{first:>10}{last:>10}{change:>10}" for name, first, last, change in _compare(before, after)]
    return "\n".join(lines)


def _compare(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    rows = []
    for label, name in HELD_OUT.items():
        first, last = before.get(name), after.get(name)
        if first is not None and last is not None:
            rows.append((label, f"{first:.3f}", f"{last:.3f}", f"{last - first:+.3f}"))
    return rows


def _held_out(evaluations: Sequence[dict]) -> dict[str, object] | None:
    """The steps between the first evaluation and the last, and what changed; None without evaluations."""
    if not evaluations:
        return None
    first, last = evaluations[0], evaluations[-1]
    return {"steps": last["step"], "rows": _compare(first, last)}


def _facts(rows: Sequence[dict], config: str) -> list[tuple[str, str]]:
    settings = yaml.safe_load(config) if config else {}
    facts = [("steps", str(rows[-1]["step"]))]
    seconds = _values(rows, "time/step")
    if seconds:
        facts.append(("training time", duration(sum(seconds))))
    speed = _values(rows, "rollout/tokens_per_second")
    if speed:
        facts.append(("sampled tokens per second", f"{sum(speed) / len(speed):.0f}"))
    for label, section, key in FACTS:
        value = (settings.get(section) or {}).get(key)
        if value not in (None, ""):
            facts.append((label, str(value)))
    return facts


def _values(rows: Sequence[dict], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _draw(rows: Sequence[dict], evaluations: Sequence[dict]) -> bytes:
    """The panels that have data, as a PNG. Lines are training steps, dots are held-out prompts."""
    panels = [panel for panel in PANELS if any(_values(rows, name) for name in panel[2].values())]
    count = max(1, -(-len(panels) // COLUMNS))
    figure, every = subplots(count, COLUMNS, (16, 3.4 * count))
    figure.suptitle("lines: training steps    dots: held-out prompts", fontsize=10)
    for axes in every[len(panels) :]:
        axes.remove()
    for axes, (title, scale, series) in zip(every, panels, strict=False):
        axes.set_title(title, fontsize=11)
        for color, (label, name) in zip(COLORS, series.items(), strict=False):
            _plot(axes, rows, name, label, linestyle="-", linewidth=1.4, color=color)
            _plot(axes, evaluations, name, "", linestyle="", marker="o", markersize=5, color=color)
        if any(value > 0 for name in series.values() for value in _values(rows, name)):
            axes.set_yscale(scale)
        axes.set_xlabel("step", fontsize=9)
        if len(series) > 1 and axes.lines:
            axes.legend(fontsize=8, frameon=False)
    return to_png(figure)


def _plot(axes: "Axes", rows: Sequence[dict], name: str, label: str, **style: Any) -> None:
    points = [(row["step"], math.nan if row[name] is None else row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        dots = {"marker": "."} if len(points) < FEW_POINTS else {}  # a line through one point shows nothing
        axes.plot(steps, values, label=label or None, **dots | style)
