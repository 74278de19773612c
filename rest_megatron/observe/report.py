"""The report of a finished run: curves as report.png, and report.html, which needs no other file and no network."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from rest_megatron.errors import DataError
from rest_megatron.observe.metrics import EVALUATIONS, METRICS, read_rows
from rest_megatron.observe.progress import clean, duration

HELD_OUT = {
    "reward": "reward/mean",
    "format": "reward/format",
    "tool name": "reward/name",
    "parameter names": "reward/parameter_names",
    "parameter values": "reward/parameter_values",
    "exact answers": "reward/exact",
    "answer length": "rollout/length",
}
REGIONS = ("format", "tool_name", "parameters", "cot")
# Title, scale, label -> metric. Region entropies differ by two orders of magnitude.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("reward", "linear", {"mean": "reward/mean", "correctness": "reward/correctness"}),
    ("accuracy", "linear", {label: HELD_OUT[label] for label in list(HELD_OUT)[1:6]}),
    ("entropy by region (nats)", "log", {name: f"entropy/{name}" for name in REGIONS}),
    ("weight by region", "linear", {name: f"weight/{name}" for name in REGIONS}),
    ("answer length (tokens)", "linear", {"mean": "rollout/length"}),
    ("gradient norm", "linear", {"before clipping": "actor/grad_norm"}),
)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
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
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem 1.25rem .25rem 0; border-bottom: 1px solid #ddd; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ width: 100%; }} pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{held_out}
<h2>Training</h2>
<img alt="Reward, accuracy, entropy, weights, length and gradient norm over steps"
     src="data:image/png;base64,{png}">
<h2>Run</h2>
{facts}
<details><summary>Configuration</summary><pre>{config}</pre></details>
</body>
</html>
"""


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
    page = PAGE.format(
        title=_escape(f"Run {run_dir.resolve().name}"),
        held_out=_held_out_section(evaluations),
        png=base64.b64encode(png).decode("ascii"),
        facts=_table((), _facts(rows, config)),
        config=_escape(config),
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


def _held_out_section(evaluations: Sequence[dict]) -> str:
    if not evaluations:
        return "<p>No held-out prompts were evaluated (data.eval).</p>"
    first, last = evaluations[0], evaluations[-1]
    title = f"<h2>Held-out prompts, before and after {last['step']} steps</h2>"
    return title + _table(("", "before", "after", "change"), _compare(first, last))


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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "<tr>" + "".join(f"<th>{_escape(name)}</th>" for name in header) + "</tr>" if header else ""
    body = "".join(
        f"<tr><td>{_escape(row[0])}</td>"
        + "".join(f'<td class="number">{_escape(cell)}</td>' for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def _escape(text: str) -> str:
    return html.escape(clean(text))


def _draw(rows: Sequence[dict], evaluations: Sequence[dict]) -> bytes:
    """The panels that have data, as a PNG. Lines are training steps, dots are held-out prompts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("lines: training steps    dots: held-out prompts", fontsize=10)
    for axes, (title, scale, series) in zip(figure.subplots(3, 2).flat, PANELS, strict=True):
        axes.set_title(title, fontsize=11)
        for color, (label, name) in zip(COLORS, series.items(), strict=False):
            _plot(axes, rows, name, label, linestyle="-", linewidth=1.4, color=color)
            _plot(axes, evaluations, name, "", linestyle="", marker="o", markersize=5, color=color)
        if any(value > 0 for name in series.values() for value in _values(rows, name)):
            axes.set_yscale(scale)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1 and axes.lines:
            axes.legend(fontsize=8, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()


def _plot(axes, rows: Sequence[dict], name: str, label: str, **style) -> None:
    points = [(row["step"], math.nan if row[name] is None else row[name]) for row in rows if name in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=label or None, **style)
