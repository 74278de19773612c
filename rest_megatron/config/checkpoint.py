"""The configuration section `checkpoint`."""

from dataclasses import dataclass

from rest_megatron.config.field import key


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run, and what it starts again from."""

    interval: int = key(10, "Steps between checkpoints; 0: at the end and when the run is stopped only.", ge=0)
    keep: int = key(2, "Checkpoints that are kept in run.dir/checkpoints; older ones are deleted.", ge=1)
    background: bool = key(False, "Write checkpoints while training goes on, from a copy in CPU memory.")
    resume: str = key(
        "auto",
        "auto: go on from the newest checkpoint in run.dir that is whole, start anew where there is none. never: "
        "run.dir must hold no earlier run. Or the directory of one checkpoint, which need not be in run.dir.",
    )
    allow_changes: bool = key(
        False, "Resume although keys that shape the training, or its data, differ from the checkpoint's."
    )
    save_by: float | None = key(
        None, "Seconds after the start at which the run is saved and ended with exit code 75; null: never.", gt=0
    )
