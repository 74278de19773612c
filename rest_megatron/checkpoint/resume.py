"""Where a run resumes from: a checkpoint of run.dir, or one that is named, whole and of the same run."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_megatron.checkpoint.choose import newest, verify
from rest_megatron.checkpoint.manifest import Manifest, step_directories
from rest_megatron.config.changes import check_unchanged
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import CheckpointError, ConfigError, Finished
from rest_megatron.utils.files import replace_durably

CHECKPOINTS = "checkpoints"
FINISHED = "finished.json"
EXPORT = "hf"
"""The directory of run.dir that the last export goes to."""


@dataclass(frozen=True)
class RunIdentity:
    """What the checkpoints of a run are those of."""

    command: str
    """train or sft."""
    data: str
    """`data_hash` of what is trained on."""


def data_hash(rows: Iterable[Any]) -> str:
    """SHA-256 of rows that are plain JSON: what a run trains on, whatever its file is called."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode("utf-8"))
    return digest.hexdigest()


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes from."""

    directory: Path
    manifest: Manifest
    is_own: bool
    """Whether it is one of run.dir, whose metrics are continued; another run's begin anew."""

    @property
    def loop(self) -> dict[str, Any]:
        """What the training loop had saved."""
        return self.manifest.state["train"]


def find_checkpoint(
    config: Config, identity: RunIdentity, parallel: Parallel, say: Callable[[str], None]
) -> Resumed | None:
    """The checkpoint to resume from, verified; None: the run starts anew. Collective.

    say: shows what was skipped, and why.
    Raises CheckpointError when there are checkpoints but none is whole, or what is named is none; ConfigError when
    data or keys that shape the training differ, or another one of its checkpoints is named; Finished when the same run
    has finished.
    """
    wanted = config.checkpoint.resume
    if wanted == "never":
        return None
    own = Path(config.run.dir) / CHECKPOINTS
    found = newest(own, parallel, say)
    if found is not None:
        resumed = Resumed(*found, is_own=True)
        named = Path(wanted).resolve()
        if wanted != "auto" and named.parent == own.resolve() and named != resumed.directory.resolve():
            rule = f"is not the newest checkpoint of run.dir={config.run.dir}, which is {resumed.directory.name}"
            refuse(config, "checkpoint.resume", rule, "Choose another run.dir for what is to start there")
    elif step_directories(own):
        raise CheckpointError(
            f"{own} holds checkpoints, but none of them is whole (see above). Copy one from a backup, or start anew in "
            "another run.dir"
        )
    elif wanted == "auto":
        return None
    else:
        resumed = Resumed(Path(wanted), verify(Path(wanted), parallel), is_own=False)
    _check(config, identity, resumed)
    if resumed.is_own:
        _refuse_finished(config, identity.command, resumed.loop["step"], parallel)
    return resumed


def _check(config: Config, identity: RunIdentity, resumed: Resumed) -> None:
    """Raise ConfigError unless the run may resume from there."""
    loop, where, command = resumed.loop, str(resumed.directory), identity.command
    if loop["command"] != command:
        raise ConfigError(
            f"{where} was saved by the command {loop['command']}, and this is {command}. Choose another run.dir"
        )
    check_unchanged(config, command, loop["config"], where)
    if loop["data"] != identity.data and not config.checkpoint.allow_changes:
        rule = f"gives other rows than those that {where} was trained on (their hashes differ)"
        fix = "Restore the file, tokenizer and chat template, or allow it with checkpoint.allow_changes=true"
        refuse(config, "data.train" if command == "train" else "sft.data", rule, fix)
    steps = getattr(config, command).steps
    if loop["step"] > steps:
        rule = f"is less than the {loop['step']} steps after which {where} was saved"
        refuse(config, f"{command}.steps", rule, "Raise it, or start from an earlier checkpoint in another run.dir")


def _refuse_finished(config: Config, command: str, step: int, parallel: Parallel) -> None:
    """Raise Finished, on all ranks, when nothing is left to do after `step` steps. Collective."""
    steps = getattr(config, command).steps
    # As rank 0 sees it: on a network's disk another node may not find yet what is there.
    if step == parallel.on_main(lambda: finished_steps(config, command)) == steps:
        raise Finished(
            f"step {steps} of {steps}, exported to hf; nothing to do\n"
            f"  run.dir={config.run.dir}. To train on, raise {command}.steps with checkpoint.allow_changes=true; to "
            "start anew, choose another run.dir"
        )


def finished_steps(config: Config, command: str) -> int | None:
    """The steps after which `command` has finished in run.dir, with its export there; None where it has not."""
    run_dir = Path(config.run.dir)
    try:
        finished = json.loads((run_dir / FINISHED).read_text())
        return finished[command] if (run_dir / EXPORT).is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_finished(config: Config, command: str) -> None:
    """Note that `command` has finished, for the next start of the same command."""
    text = json.dumps({command: getattr(config, command).steps}) + "\n"
    replace_durably(Path(config.run.dir) / FINISHED, text.encode())
