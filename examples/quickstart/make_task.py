"""Write the quickstart's data: train.jsonl, heldout.jsonl (rlla rows) and sft.jsonl (demonstrations).

`python examples/quickstart/make_task.py --out runs/quickstart/data --seed 0`. The same seed writes the same bytes; no
prompt comes twice, in one file or in two. The other options make the variants of `examples/compare`.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from corruptions import spoil
from tool_task import Task, draw_task, think_aloud

NUM_DEMONSTRATIONS = 8192


@dataclass(frozen=True)
class Recipe:
    """How many prompts, and what demonstrations are like."""

    num_train: int = 1024
    num_heldout: int = 192
    fillers: tuple[int, int] = (1, 3)
    """Fewest and most filler words of a thought."""
    spoiled_share: float = 0.6
    layout: bool = True
    """Whether some are spoiled in the layout of thought and action, and not in what is called alone."""


def main() -> None:
    """Read the command line and write the files."""
    plain = Recipe()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the three files")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn")
    parser.add_argument("--train", type=int, default=plain.num_train, help="prompts to train on")
    parser.add_argument("--heldout", type=int, default=plain.num_heldout, help="prompts held out")
    parser.add_argument("--fillers", type=int, nargs=2, default=plain.fillers, help="fewest and most words of padding")
    parser.add_argument("--spoiled", type=float, default=plain.spoiled_share, help="share of spoiled demonstrations")
    parser.add_argument("--keep-layout", action="store_true", help="spoil what is called, not the tags around it")
    given = parser.parse_args()
    recipe = Recipe(given.train, given.heldout, tuple(given.fillers), given.spoiled, not given.keep_layout)
    write_files(given.out, given.seed, recipe)


def write_files(directory: Path, seed: int, recipe: Recipe = Recipe()) -> None:
    """Write the three files into `directory`, which is made when it is missing."""
    rng = random.Random(seed)
    tasks = draw_distinct(rng)
    directory.mkdir(parents=True, exist_ok=True)
    for name, size in (("heldout", recipe.num_heldout), ("train", recipe.num_train)):
        write_rows(directory / f"{name}.jsonl", (prompt_row(next(tasks), index, name) for index in range(size)))
    demonstrations = (demonstration_row(rng, next(tasks), recipe) for _ in range(NUM_DEMONSTRATIONS))
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


def demonstration_row(rng: random.Random, task: Task, recipe: Recipe) -> dict:
    """A prompt and an answer to imitate, spoiled as often as the recipe says."""
    answer = replace(task.answer, thought=think_aloud(rng, task.answer.thought, *recipe.fillers))
    spoiled = rng.random() < recipe.spoiled_share
    response = spoil(rng, task, answer, recipe.layout) if spoiled else answer.text()
    return {"prompt": task.messages(), "response": response}


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
