"""The comparison as Markdown: it claims what the intervals allow, no more."""

from arms import BASELINE
from comparison import EFFECT, OUTCOMES

VALUES = """
## Task: {name}

Supervised start, held-out: {start}. Over the run: mean over the first {answers:,.0f} answers sampled in
training, all to prompts not met before. At the end: {prompts} held-out prompts x 4 answers after the last step,
by when arms that refill have sampled more. Mean and half width of the 95% interval (Student's t over seeds).
"""
DIFFERENCES = """
Paired differences from {baseline} over the n seeds that both have; the intervals (95%) are not corrected. An arm
"differs" in an outcome where p < .05 after Holm's correction for the {comparisons} arms of this table with two
seeds or more. Seeds: how many would show a difference of {effect} in exact answers (80% power, two-sided 5%),
over the run / at the end. By prompt: exact at the end, given these runs.
"""


def page(result: dict) -> str:
    """All tasks of comparison.json."""
    head = f"{result['date']}, {'; '.join(result['machines'])}, commit {', '.join(result['commits'])}.\n"
    return head + "".join(section(name, task) for name, task in result["tasks"].items())


def section(name: str, task: dict) -> str:
    """A task's values, then its differences from the baseline, where there are any."""
    start = ", ".join(f"{measure} {value:.3f}" for measure, value in task["start"].items())
    about = VALUES.format(name=name, start=start, answers=task["answers"], prompts=task["prompts"])
    lines = [about, *values(task["arms"])]
    if paired := [row for row in task["arms"] if row["paired_seeds"]]:
        about = DIFFERENCES.format(baseline=BASELINE, comparisons=task["comparisons"], effect=EFFECT)
        lines += [about, *differences(paired)]
    return "\n".join([*lines, ""])


def values(rows: list[dict]) -> list[str]:
    """The lines of the table of means."""
    lines = line(["arm", "seeds", "answers a run", *OUTCOMES], head=True)
    for row in rows:
        cells = [with_interval(row["outcomes"][outcome], "{:.3f}") for outcome in OUTCOMES]
        lines += line([row["arm"], str(len(row["seeds"])), f"{row['answers']:,.0f}", *cells])
    return lines


def differences(rows: list[dict]) -> list[str]:
    """The lines of the table of paired differences."""
    lines = line(["arm", "n", *OUTCOMES, "differs", "seeds", "by prompt"], head=True)
    for row in rows:
        found = {outcome: row["outcomes"][outcome]["difference"] for outcome in OUTCOMES}
        cells = [with_interval(cell, "{:+.3f}") for cell in found.values()]
        differs = "; ".join(outcome for outcome, cell in found.items() if cell["differs"]) or "not shown"
        needed = [cell["seeds_needed"] for outcome, cell in found.items() if outcome.startswith("exact")]
        seeds = " / ".join("?" if n is None else str(n) for n in needed)
        prompts = with_interval(row["by_prompt"]["exact"], "{:+.3f}")
        lines += line([row["arm"], str(len(row["paired_seeds"])), *cells, differs, seeds, prompts])
    return lines


def with_interval(cell: dict, form: str) -> str:
    """Mean and half width, where there is one."""
    half_width = cell["half_width"]
    return form.format(cell["mean"]) + ("" if half_width is None else f" ± {half_width:.3f}")


def line(cells: list[str], head: bool = False) -> list[str]:
    """A line of a Markdown table, with the rule below it where it is the head."""
    return ["| " + " | ".join(cells) + " |", *(["|" + "---|" * len(cells)] if head else [])]
