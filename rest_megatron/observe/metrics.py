"""Metrics of a run: JSON lines always, Weights & Biases and TensorBoard when asked for."""

import json
import math
import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TextIO

from rest_megatron.config.describe import to_dict
from rest_megatron.config.redact import redact
from rest_megatron.config.schema import Config, LogConfig
from rest_megatron.errors import ConfigError
from rest_megatron.utils.files import replacing

METRICS = "metrics.jsonl"
EVALUATIONS = "eval.jsonl"


class Sink(Protocol):
    """A place outside the run's own files that takes metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Send what is left."""


class MetricsLogger:
    """Writes metrics to run_dir: one JSON line per step, flushed at once; a value that is not finite becomes null.

    A context manager. after: the last step of a run that goes on, whose rows of later, lost steps are taken out, and
    so are those of evaluations after step `evaluated`; None: the files begin anew.
    """

    def __init__(
        self,
        run_dir: Path,
        log: LogConfig,
        config_dict: Mapping,
        after: int | None = None,
        evaluated: int | None = None,
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._metrics = stack.enter_context(_open_rows(run_dir / METRICS, after))
            self._evaluations = stack.enter_context(_open_rows(run_dir / EVALUATIONS, evaluated))
            self._sinks = _open_sinks(run_dir, log, redact(dict(config_dict)), after, stack)
            self._stack = stack.pop_all()

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one training step; step counts from 1."""
        self._write(self._metrics, step, metrics, "")

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of held-out prompts after `step` steps; trackers see them under eval/."""
        self._write(self._evaluations, step, metrics, "eval/")

    def _write(self, file, step: int, metrics: Mapping[str, float], prefix: str) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        file.write(json.dumps({"step": step, **row}) + "\n")
        file.flush()
        for sink in self._sinks:
            sink.log(step, {prefix + name: value for name, value in values.items()})


class NoMetrics:
    """The logger of every rank but the first: takes everything, keeps nothing."""

    def __enter__(self) -> "NoMetrics":
        return self

    def __exit__(self, *_) -> None:
        return None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep nothing."""

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep nothing."""


def open_metrics(
    rank: int, run_dir: Path, config: Config, after: int | None = None, evaluated: int | None = None
) -> MetricsLogger | NoMetrics:
    """The logger of this rank, as `MetricsLogger` says.

    Raises ConfigError when a tracker that is asked for cannot be used.
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
    """The file of rows, open at its end; a kill meanwhile leaves the old rows or the new ones."""
    if after is None:
        return open(path, "w", encoding="utf-8")
    with replacing(path) as kept:
        kept.write_text("".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= after))
    return open(path, "a", encoding="utf-8")


def _open_sinks(run_dir: Path, log: LogConfig, config: Mapping, after: int | None, stack: ExitStack) -> list[Sink]:
    sinks: list[Sink] = []
    if log.wandb != "off":
        sinks.append(_Wandb(run_dir, log, config, after))
        stack.callback(sinks[-1].close)
    if log.tensorboard:
        sinks.append(_TensorBoard(run_dir, after))
        stack.callback(sinks[-1].close)
    return sinks


class _Wandb:
    """Weights & Biases. The key is its own affair: WANDB_API_KEY or a netrc file, never a key of ours.

    A run that goes on keeps its id; it takes no step twice, so of steps that were lost it shows the first attempt.
    """

    def __init__(self, run_dir: Path, log: LogConfig, config: Mapping, after: int | None):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(f"log.wandb={log.wandb} needs wandb: pip install wandb, or set log.wandb=off") from error
        if log.wandb == "online" and not wandb.login(prompt=False):
            raise ConfigError(
                "log.wandb=online finds no credentials\n"
                "  Set WANDB_API_KEY or run `wandb login` once; log.wandb=offline needs neither"
            )
        # Command line, environment and console may hold secrets; none of them is recorded.
        settings = wandb.Settings(
            silent=True,
            console="off",
            x_disable_meta=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
        )
        try:
            self._run = wandb.init(
                project=log.wandb_project,
                mode=log.wandb,
                dir=run_dir,
                config=dict(config),
                settings=settings,
                id=_wandb_id(run_dir, anew=after is None),
                resume="allow" if log.wandb == "online" and after is not None else None,
            )
        except wandb.Error as error:
            raise ConfigError(
                f"log.wandb={log.wandb} cannot start: {error}\n  log.wandb=offline needs neither key nor network"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run_dir: Path, anew: bool) -> str:
    """The id of the run in this directory, a new one where it begins anew."""
    path = run_dir / "wandb-id.txt"
    if anew or not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


class _TensorBoard:
    """Scalars under run_dir/tensorboard."""

    def __init__(self, run_dir: Path, after: int | None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "log.tensorboard=true needs tensorboard: pip install tensorboard, or set log.tensorboard=false"
            ) from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=None if after is None else after + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
