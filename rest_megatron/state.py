"""What a run hands from step to step beside the actor: all of it plain JSON, from which it resumes exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rest_megatron.config.schema import AlarmsConfig, Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.method.weights import WeightState
from rest_megatron.observe.alarms import Alarms


@dataclass
class RunState:
    """The place of a run and its running means."""

    cursor: PromptCursor
    """The order of prompts or demonstrations."""
    alarms: Alarms
    step: int = 0
    """Finished training steps."""
    evaluated: bool = False
    """Whether what is due after `step`, evaluation and export, is done."""
    skipped: int = 0
    """The last updates, in a row, that were skipped because they were not finite."""
    weights: WeightState = field(default_factory=WeightState)

    def to_dict(self) -> dict[str, Any]:
        """A copy as plain JSON, under the names that checkpoints have had from the first version on."""
        return {
            "step": self.step,
            "closed": self.evaluated,
            "cursor": self.cursor.state_dict(),
            "skips": self.skipped,
            "alarms": self.alarms.to_dict(),
            "weights": self.weights.to_dict(),
        }

    def load(self, values: Mapping[str, Any], alarms: AlarmsConfig) -> None:
        """Resume where `to_dict` was taken. Raises CheckpointError for a cursor over other data."""
        self.cursor.load_state_dict(values["cursor"])
        self.step, self.evaluated, self.skipped = values["step"], values["closed"], values["skips"]
        self.weights = WeightState.from_dict(values["weights"])
        self.alarms = Alarms.from_dict(alarms, values["alarms"])


def new_state(config: Config, num_rows: int) -> RunState:
    """The state of a run over `num_rows` rows before its first step. Raises DataError for none."""
    return RunState(PromptCursor(num_rows, config.run.seed), Alarms(config.alarms))
