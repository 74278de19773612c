"""The table as a picture."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .table import Row, is_wrong


def save_plot(rows: list[Row], path: str, title: str) -> None:
    """Write bars of time (beside the floor) and extra memory, one line of panels per case, to `path`."""
    matplotlib.use("Agg")
    cases = [c for c in dict.fromkeys(r.result.case for r in rows) if any(_ran(r) for r in rows if r.result.case == c)]
    if not cases:
        raise ValueError(f"nothing ran, so there is nothing to draw in {path}")
    shown = {case: [row for row in rows if row.result.case == case and _ran(row)] for case in cases}
    heights = [len(shown[case]) + 2 for case in cases]
    figure = Figure(figsize=(13, 0.32 * sum(heights) + 1), layout="constrained")
    figure.suptitle(f"{title}; dashed: the floor")
    panels = figure.subplots(len(cases), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for case, (times, memory) in zip(cases, panels, strict=True):
        draw_case(times, memory, shown[case], case.title())
    figure.savefig(path, dpi=120)


def draw_case(times: Axes, memory: Axes, rows: list[Row], title: str) -> None:
    """Fill the two panels of a case. Both axes are logarithmic; wrong gradients are hatched."""
    names = [row.result.contestant for row in rows]
    colors = ["tab:orange" if name.startswith("ours") else "tab:blue" for name in names]
    hatches = ["//" if is_wrong(row.result) else "" for row in rows]
    floor = max(row.floor for row in rows) * 1000
    milliseconds = [row.result.seconds * 1000 for row in rows]
    times.barh(names, milliseconds, color=colors, hatch=hatches)
    times.axvline(floor, color="black", linestyle="--")
    times.set(title=title, xlabel="ms", xscale="log")
    times.set_xlim(left=min(floor, *milliseconds) / 2)
    # A logarithmic axis has no 0, so the bars start at 1 MiB.
    memory.barh(names, [max((row.result.extra_bytes or 0) / 2**20, 1) for row in rows], color=colors)
    memory.set(xlabel="extra memory, MiB", xscale="log")
    memory.set_xlim(left=1)
    memory.tick_params(labelleft=False)
    for axes in (times, memory):
        axes.invert_yaxis()


def _ran(row: Row) -> bool:
    return not row.result.reason
