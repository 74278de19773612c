"""What a run hands from step to step beside the actor: all of it plain JSON, from which it goes on exactly."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rest_megatron.config.schema import AlarmsConfig
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.method.weights import WeightState
from rest_megatron.observe.alarms import Alarms
from rest_megatron.session import Session
from rest_megatron.step.nonfinite import SkipBudget


class RunState:
    """The place of a run and its running means.

    Args:
        cursor: the order of prompts or demonstrations.
        skips: the budget of updates that are not finite.
        alarms: their settings.
    """

    def __init__(self, cursor: PromptCursor, skips: SkipBudget, alarms: AlarmsConfig):
        self.step = 0
        """Finished training steps."""
        self.closed = False
        """Whether what is due after `step`, evaluation and export, is done."""
        self.cursor = cursor
        self.skips = skips
        self.alarms = Alarms(alarms)
        self.weights = WeightState()

    def to_dict(self) -> dict[str, Any]:
        """A copy as plain JSON."""
        return {
            "step": self.step,
            "closed": self.closed,
            "cursor": self.cursor.state_dict(),
            "skips": self.skips.in_row,
            "alarms": self.alarms.to_dict(),
            "weights": self.weights.to_dict(),
        }

    def load(self, values: Mapping[str, Any], alarms: AlarmsConfig) -> None:
        """Go on where `to_dict` was taken. Raises CheckpointError for a cursor over other data."""
        self.cursor.load_state_dict(values["cursor"])
        self.step, self.closed = values["step"], values["closed"]
        self.skips.in_row = values["skips"]
        self.weights = WeightState.from_dict(values["weights"])
        self.alarms = Alarms.from_dict(alarms, values["alarms"])


def new_state(session: Session, num_rows: int) -> RunState:
    """The state of a run over `num_rows` rows before its first step. Raises DataError for none."""
    config = session.config
    skips = SkipBudget(config.train.max_nonfinite, session.run_dir / "nonfinite", session.parallel)
    return RunState(PromptCursor(num_rows, config.run.seed), skips, config.alarms)


def data_hash(rows: Iterable[Any]) -> str:
    """SHA-256 of rows that are plain JSON: what a run trains on, whatever its file is called."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode("utf-8"))
    return digest.hexdigest()
