"""From the figures of all rounds to the table for people and the picture."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.table import format_bytes

# Of the gradient's norm, float32 against float32: far above what rounding does, far below any other loss.
SAME_GRADIENT = 1e-3
HEADER = (
    "arm",
    "log-probs",
    "update",
    "hf / this",
    "plain / this",
    "memory",
    "of a step",
    "tokens",
    "FLOPs",
    "gradient",
)


def seconds(figures: dict[str, Any], clock: str = "cpu") -> float:
    """Of log-probs and update together."""
    return figures["log_probs"][clock] + figures["update"][clock]


def make_row(arm: Any, first: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's own figures: medians over the rounds, and every round; memory is the most of any."""
    middle = {
        part: {clock: statistics.median(f[part][clock] for f in rounds) for clock in ("cpu", "wall")}
        for part in ("log_probs", "update")
    }
    known = [name for name in ("total_bytes", "step_bytes") if name in rounds[0]]
    return {
        "arm": arm.name,
        "plain": arm.plain,
        "zeros": arm.zeros,
        "seconds": middle,
        **{name: max(f[name] for f in rounds) for name in known},
        **{name: first[name] for name in ("tokens", "flops", "loss", "grad_norm")},
        "rounds": rounds,
    }


def compare(rows: list[dict[str, Any]], references: dict[bool, float]) -> None:
    """Add to each row its ratios of CPU seconds to the arms "hf" and its plain one, round by round, and whether its
    gradient is Hugging Face's; references: the norm of that by `zeros`, where it is known.
    """
    by_name = {row["arm"]: row for row in rows}
    for row in rows:
        row["ratios"] = {}
        for what, name in (("hf", "hf"), ("plain", row["plain"])):
            if name in by_name:
                pairs = zip(by_name[name]["rounds"], row["rounds"], strict=True)
                row["ratios"][what] = [seconds(other) / seconds(own) for other, own in pairs]
        norm = references.get(row["zeros"])
        row["gradient_error"] = None if norm is None else abs(row["grad_norm"] / norm - 1)


def format_case(case: dict[str, Any]) -> str:
    """A table: what is asked, then a line for each arm, and what could not run."""
    asked = case["asked"]
    title = (
        f"{case['shape']}: {asked['groups']} groups of {asked['group_size']} answers, "
        f"{asked['tokens']} tokens of which {asked['targets']} sampled, {asked['flops'] / 1e12:.3g} TFLOP asked"
    )
    lines = [HEADER, *(_cells(row, asked) for row in case["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  " + "  ".join(_pad(i, cell, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
    return "\n".join([title, *table, *(f"  {name}: {reason}" for name, reason in case["missing"].items())])


def _cells(row: dict[str, Any], asked: dict[str, Any]) -> tuple[str, ...]:
    passes = row["seconds"]
    error = row["gradient_error"]
    wrong = " WRONG" if error is not None and not error <= SAME_GRADIENT else ""
    return (
        row["arm"],
        f"{passes['log_probs']['cpu']:.2f} s",
        f"{passes['update']['cpu']:.2f} s",
        *(format_ratios(row["ratios"].get(what)) for what in ("hf", "plain")),
        format_bytes(row.get("total_bytes")),
        format_bytes(row.get("step_bytes")),
        f"{row['tokens'] / (2 * asked['tokens']):.2f} x",
        f"{row['flops'] / asked['flops']:.2f} x",
        "-" if error is None else f"{error:.0e}{wrong}",
    )


def format_ratios(ratios: Sequence[float] | None) -> str:
    """The median and the range."""
    if not ratios:
        return "-"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _pad(column: int, cell: str, width: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def save_plot(cases: list[dict[str, Any]], path: str, title: str) -> None:
    """Bars of CPU seconds and of memory, one line of panels for each shape."""
    heights = [len(case["rows"]) + 2 for case in cases]
    figure = Figure(figsize=(13, 0.34 * sum(heights) + 1), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(cases), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for case, (times, memory) in zip(cases, panels, strict=True):
        names = [row["arm"] for row in case["rows"]]
        left = [0.0] * len(names)
        for part, label, color in (("log_probs", "log-probs", "tab:gray"), ("update", "update", "tab:blue")):
            own = [row["seconds"][part]["cpu"] for row in case["rows"]]
            times.barh(names, own, left=left, label=label, color=color)
            left = [a + b for a, b in zip(left, own, strict=True)]
        times.set(title=case["shape"], xlabel="CPU seconds of one step")
        times.legend()
        _draw_memory(memory, names, lambda name, rows=case["rows"]: [(row.get(name) or 0) / 2**20 for row in rows])
        for axes in (times, memory):
            axes.invert_yaxis()
    figure.savefig(Path(path), dpi=120)


def _draw_memory(axes: Any, names: list[str], mebibytes: Callable[[str], list[float]]) -> None:
    axes.barh(names, mebibytes("total_bytes"), color="tab:gray", label="with weights and optimizer")
    axes.barh(names, mebibytes("step_bytes"), color="tab:blue", label="of a step")
    axes.set(xlabel="memory, MiB")
    axes.tick_params(labelleft=False)
    axes.legend()
