"""Write the quickstart's data: train.jsonl, heldout.jsonl (rlla rows) and sft.jsonl (demonstrations).

`python examples/quickstart/make_task.py --out runs/quickstart/data --seed 0`. The same seed writes the same bytes; no
prompt comes twice, in one file or in two.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from corruptions import spoil
from tool_task import Task, draw_task, think_aloud

NUM_TRAIN = 1024
NUM_HELDOUT = 192
NUM_DEMONSTRATIONS = 8192
SPOILED_SHARE = 0.6


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the three files")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    arguments = parser.parse_args()
    write_files(arguments.out, arguments.seed)


def write_files(directory: Path, seed: int) -> None:
    """Write the three files into `directory`, which is made when it is missing."""
    rng = random.Random(seed)
    tasks = draw_distinct(rng)
    directory.mkdir(parents=True, exist_ok=True)
    for name, size in (("heldout", NUM_HELDOUT), ("train", NUM_TRAIN)):
        write_rows(directory / f"{name}.jsonl", (prompt_row(next(tasks), index, name) for index in range(size)))
    demonstrations = (demonstration_row(rng, next(tasks)) for _ in range(NUM_DEMONSTRATIONS))
    write_rows(directory / "sft.jsonl", demonstrations)


def draw_distinct(rng: random.Random) -> Iterator[Task]:
    """Draw tasks for ever, no prompt twice."""
    seen = set()
    while True:
        task = draw_task(rng)
        prompt = (task.tools, task.request)
        if prompt not in seen:
            seen.add(prompt)
            yield task


def prompt_row(task: Task, index: int, split: str) -> dict:
    """A row of the rlla schema."""
    return {
        "data_source": "quickstart",
        "prompt": task.messages(),
        "ability": "tool_use",
        "reward_model": {"style": "rule", "ground_truth": task.answer.text()},
        "extra_info": {"split": split, "index": index},
    }


def demonstration_row(rng: random.Random, task: Task) -> dict:
    """A prompt and an answer to imitate, spoiled more often than not."""
    answer = replace(task.answer, thought=think_aloud(rng, task.answer.thought))
    response = spoil(rng, task, answer) if rng.random() < SPOILED_SHARE else answer.text()
    return {"prompt": task.messages(), "response": response}


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
