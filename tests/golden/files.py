"""Golden cases: our own texts and numbers, and what the method's formulas give for them.

Each file is derived by the module of its name, from formulas written out in plain Python (or by hand, where a case says
so). None of them imports the trainer, so that a file holds what should come out, not what does.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tests.golden import advantages, losses, regions, rewards, weights

FILES: dict[str, Callable[[], list[dict]]] = {
    module.__name__.rpartition(".")[2]: module.rows for module in (advantages, losses, regions, rewards, weights)
}


def path(name: str) -> Path:
    """Where the golden file of this name lies."""
    return Path(__file__).parent / f"{name}.jsonl"


def read(name: str) -> list[dict]:
    """Its cases."""
    return [json.loads(line) for line in path(name).read_text(encoding="utf-8").splitlines()]


def write(name: str) -> None:
    """Derive it anew: a JSON object per line, numbers with twelve digits."""
    lines = [json.dumps(_rounded(row), ensure_ascii=False) + "\n" for row in FILES[name]()]
    path(name).write_text("".join(lines), encoding="utf-8")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
