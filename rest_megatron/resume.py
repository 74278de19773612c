"""Where a run goes on from: a checkpoint of run.dir, or one that is named, whole and of the same run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_megatron.actor.parallel import Parallel
from rest_megatron.checkpoint.choose import newest, verify
from rest_megatron.checkpoint.manifest import Manifest, step_directories
from rest_megatron.config.changes import check_unchanged
from rest_megatron.config.schema import Config
from rest_megatron.errors import CheckpointError, ConfigError

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from."""

    directory: Path
    manifest: Manifest
    is_own: bool
    """Whether it is one of run.dir, whose metrics go on; another run's begin anew."""

    @property
    def loop(self) -> dict[str, Any]:
        """What the training loop had saved."""
        return self.manifest.state["train"]


def find_checkpoint(config: Config, command: str, parallel: Parallel, say: Callable[[str], None]) -> Resumed | None:
    """The checkpoint to go on from, verified; None: the run starts anew. Collective.

    command: train or sft. say: shows what was skipped, and why.
    Raises CheckpointError when there are checkpoints but none is whole, or what is named is none; ConfigError when
    keys that shape the training differ, or the run has finished.
    """
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    own = Path(config.run.dir) / CHECKPOINTS
    found = newest(own, parallel, say)
    if found is not None:
        resumed = Resumed(*found, is_own=True)
    elif step_directories(own):
        raise CheckpointError(
            f"{own} holds checkpoints, but none of them is whole (see above). Copy one from a backup, or start anew in "
            "another run.dir"
        )
    elif wanted == "auto":
        return None
    else:
        resumed = Resumed(Path(wanted), verify(Path(wanted), parallel), is_own=False)
    _check(config, command, resumed)
    return resumed


def _check(config: Config, command: str, resumed: Resumed) -> None:
    loop, where = resumed.loop, str(resumed.directory)
    if loop["command"] != command:
        raise ConfigError(
            f"{where} was saved by the command {loop['command']}, and this is {command}. Choose another run.dir"
        )
    check_unchanged(config, command, loop["config"], where)
    steps = getattr(config, command).steps
    exported = Path(config.run.dir) / "hf"
    if loop["step"] >= steps and exported.exists():
        raise ConfigError(
            f"run.dir={config.run.dir} holds a finished run: step {loop['step']} of {command}.steps={steps}, exported "
            f"to {exported}\n  Choose another run.dir, or raise {command}.steps with checkpoint.allow_changes=true"
        )
