"""Train arms with seeds from one supervised checkpoint per task, and measure each run; finished runs are kept.

`python examples/compare/run_arms.py --out runs/compare --task quick long --seeds 0-4 --arms main --jobs 2`. A seed sets
prompt order and sampling, so runs of one seed are paired. The same command again does what is missing; several may work
in one directory at once. Then `python examples/compare/summarize.py --out runs/compare`.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arms import ARMS, MAIN, TASKS
from programs import Failed
from runs import do_run, prepare


def main() -> None:
    """Read the command line, warm up once per task, do all runs; a run that fails leaves the others to go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the comparison")
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS), help="tasks (default: all)")
    parser.add_argument("--seeds", nargs="+", default=["0-4"], help="such as 0-4, or 0 3 5-7 (default: 0-4)")
    parser.add_argument("--arms", nargs="+", default=["all"], help="main, all, or names of arms.py (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    given = parser.parse_args()
    out, names = given.out.resolve(), chosen_arms(given.arms)
    # Seed after seed, so that an interrupted comparison has whole pairs.
    runs = [(task, name, seed) for seed in parse_seeds(given.seeds) for name in names for task in given.task]
    try:
        for task in given.task:
            prepare(out, task)
    except Failed as failure:
        sys.exit(str(failure))
    with ThreadPoolExecutor(given.jobs) as pool:
        failures = [failure for failure in pool.map(lambda run: attempt(out, *run), runs) if failure]
    sys.exit("\n".join(failures) or 0)


def parse_seeds(words: Sequence[str]) -> list[int]:
    """["0-2", "5"] -> [0, 1, 2, 5]; both ends of a range belong to it."""
    ends = [[int(end) for end in word.split("-")] for word in words]
    return sorted({seed for own in ends for seed in range(own[0], own[-1] + 1)})


def chosen_arms(words: Sequence[str]) -> list[str]:
    """The arms that are named, in the order of `ARMS`, whose first are the main ones."""
    groups: dict[str, Sequence[str]] = {"main": MAIN, "all": list(ARMS)}
    names = {name for word in words for name in groups.get(word, [word])}
    if unknown := names - ARMS.keys():
        sys.exit(f"--arms: {', '.join(sorted(unknown))} is not an arm; there are main, all, {'; '.join(ARMS)}")
    return [name for name in ARMS if name in names]


def attempt(out: Path, task: str, name: str, seed: int) -> str | None:
    """One run; returns what went wrong."""
    try:
        do_run(out, task, name, seed)
    except Failed as failure:
        return str(failure)
    return None


if __name__ == "__main__":
    main()
