"""Trackers outside the run's own files: Weights & Biases and TensorBoard."""

import secrets
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from rest_megatron.config.schema import LogConfig
from rest_megatron.errors import ConfigError


class Tracker(Protocol):
    """A place outside the run's own files that takes metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of one step."""

    def close(self) -> None:
        """Send what is left."""


def open_trackers(run_dir: Path, log: LogConfig, config: Mapping, after: int | None, stack: ExitStack) -> list[Tracker]:
    """The trackers that `log` names, which `stack` closes.

    config: what they show of the run's configuration, without secrets. after: the last step of a resumed run; None: the
    run begins anew. Raises ConfigError for a tracker that cannot be used.
    """
    trackers: list[Tracker] = []
    if log.wandb != "off":
        trackers.append(_Wandb(run_dir, log, config, after))
        stack.callback(trackers[-1].close)
    if log.tensorboard:
        trackers.append(_TensorBoard(run_dir, after))
        stack.callback(trackers[-1].close)
    return trackers


class _Wandb:
    """Weights & Biases. It finds its key by itself, in WANDB_API_KEY or a netrc file, never in a key of ours.

    A resumed run keeps its id. A step is taken only once, so of steps that were lost the first attempt is shown.
    """

    def __init__(self, run_dir: Path, log: LogConfig, config: Mapping, after: int | None) -> None:
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
                mode="online" if log.wandb == "online" else "offline",
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

    def __init__(self, run_dir: Path, after: int | None) -> None:
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
