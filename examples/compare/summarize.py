"""Table, picture and figures of a comparison so far: comparison.md, comparison.png, comparison.json.

`python examples/compare/summarize.py --out runs/compare`. Arms may have different seeds: differences from the baseline
are over those that both have.
"""

import argparse
import datetime
import json
from pathlib import Path

import numpy as np
from arms import BASELINE, TASKS
from comparison import compare, read_runs
from figures import picture
from summary import START, SUMMARY, write_json
from tables import page


def main() -> None:
    """Read the command line and the runs, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparison")
    out = parser.parse_args().out
    runs = {task: own for task in TASKS if BASELINE in (own := read_runs(out, task))}
    if not runs:
        raise SystemExit(f"{out} has no finished run of {BASELINE}, which all differences are from: run_arms.py first")
    tasks = {name: compare(own) | start(out / name) for name, own in runs.items()}
    result = origin(out) | {"tasks": tasks}
    write_json(out / "comparison.json", result)
    (out / "comparison.md").write_text(page(result), encoding="utf-8")
    picture(runs, tasks).savefig(out / "comparison.png", dpi=110)


def start(home: Path) -> dict:
    """What the supervised start reached, and over how many held-out prompts."""
    final = json.loads((home / START).read_text(encoding="utf-8"))["final"]
    means = {measure: float(np.mean(values)) for measure, values in final.items()}
    return {"start": means, "prompts": len(final["exact"])}


def origin(out: Path) -> dict:
    """When it was summarized, and the commits and machines of the runs."""
    summaries = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob(f"*/*/seed-*/{SUMMARY}")]
    found = {key: sorted({summary[key] for summary in summaries}) for key in ("commit", "machine")}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "commits": found["commit"], "machines": found["machine"]}


if __name__ == "__main__":
    main()
