"""Metrics of a run: JSON lines always, and the trackers that its configuration names."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self, TextIO

from rest_megatron.config.describe import to_dict
from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config, LogConfig
from rest_megatron.observe.trackers import open_trackers
from rest_megatron.utils.files import replacing

METRICS = "metrics.jsonl"
EVALUATIONS = "eval.jsonl"


class Metrics(Protocol):
    """Takes the metrics of a run. A context manager, at whose end they are all written."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one training step; step counts from 1."""

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of held-out prompts after `step` steps."""


class MetricsLogger:
    """Writes metrics to run_dir: one JSON line per step, flushed at once; a value that is not finite becomes null.

    The file of evaluations is there from the first of them on. A context manager.

    Args:
        run_dir: where the files are; made where it is missing.
        log: which trackers take the metrics as well.
        config_dict: the run's configuration, which trackers get without its secrets.
        after: the last step of a resumed run; the rows of later steps, which were lost, are removed. None: the file
            begins anew.
        evaluated: the same of the evaluations.
    """

    def __init__(
        self,
        run_dir: Path,
        log: LogConfig,
        config_dict: Mapping,
        after: int | None = None,
        evaluated: int | None = None,
    ) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._metrics = stack.enter_context(_open_rows(run_dir / METRICS, after))
            self._evaluations = run_dir / EVALUATIONS
            _keep_rows(self._evaluations, evaluated)
            self._trackers = open_trackers(run_dir, log, redact(dict(config_dict)), after, stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one training step; step counts from 1."""
        self._write(self._metrics, step, metrics, "")

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of held-out prompts after `step` steps; trackers see them under eval/."""
        with open(self._evaluations, "a", encoding="utf-8") as file:
            self._write(file, step, metrics, "eval/")

    def _write(self, file: TextIO, step: int, metrics: Mapping[str, float], prefix: str) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        file.write(json.dumps({"step": step, **row}) + "\n")
        file.flush()
        for tracker in self._trackers:
            tracker.log(step, {prefix + name: value for name, value in values.items()})


class NoMetrics:
    """The metrics of every rank but the first, which keeps nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep nothing."""

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep nothing."""


def open_metrics(
    rank: int, run_dir: Path, config: Config, after: int | None = None, evaluated: int | None = None
) -> Metrics:
    """The logger of this rank, as `MetricsLogger` says.

    Raises ConfigError for a tracker that cannot be used.
    """
    return MetricsLogger(run_dir, config.log, to_dict(config), after, evaluated) if rank == 0 else NoMetrics()


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics file. A line that a killed run left half-written is skipped; a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
    return rows


def _open_rows(path: Path, after: int | None) -> TextIO:
    """The file of rows, open at its end."""
    _keep_rows(path, after)
    return open(path, "a", encoding="utf-8")


def _keep_rows(path: Path, after: int | None) -> None:
    """Keep the rows up to step `after`, or none; without rows no file is left. A kill leaves old rows or new ones."""
    rows = [] if after is None else [row for row in read_rows(path) if row["step"] <= after]
    if not rows:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as kept:
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
