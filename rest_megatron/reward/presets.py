"""The reward of a run: one of the presets, or a user's function, behind the same two calls."""

from dataclasses import dataclass
from typing import Any, Protocol

from rest_megatron.config.method import ReferenceVariant
from rest_megatron.config.schema import Config
from rest_megatron.grammar import GRAMMARS, Grammar
from rest_megatron.reward.custom import FunctionReward, load_reward
from rest_megatron.reward.paper import GroundTruth, parse_ground_truth, score
from rest_megatron.reward.poster import poster_score
from rest_megatron.reward.reference import ReferenceTruth, read_reference, reference_score
from rest_megatron.types import Score


class Reward(Protocol):
    """Scores answers. Built once for a run; it holds settings only."""

    def read(self, ground_truth: str) -> Any:
        """What `score` compares with. Raises ValueError with the reason when the ground truth cannot be scored."""

    def score(self, response: bytes, truth: Any, *, progress: float, step: int, think_open: bool = False) -> Score:
        """The score of any bytes.

        response: the answer without its end-of-turn token. truth: what `read` returned. progress: nu in [0, 1].
        step: the training step, counted from 1. think_open: the prompt has already opened the thought.
        """


@dataclass(frozen=True)
class PaperReward:
    """Preset `paper`, see `paper.py`. ramp: scales follow progress; without, they are those of its end."""

    grammar: Grammar
    ramp: bool

    def read(self, ground_truth: str) -> GroundTruth:
        """See `Reward.read`."""
        return parse_ground_truth(ground_truth)

    def score(
        self, response: bytes, truth: GroundTruth, *, progress: float, step: int, think_open: bool = False
    ) -> Score:
        """See `Reward.score`."""
        progress = progress if self.ramp else 1.0
        return score(response, truth, progress=progress, grammar=self.grammar, think_open=think_open)


@dataclass(frozen=True)
class PosterReward:
    """Preset `poster`, see `poster.py`. ramp: shares follow progress; without, they are those of its end."""

    grammar: Grammar
    ramp: bool
    beta_accuracy: float
    beta_format: float

    def read(self, ground_truth: str) -> GroundTruth:
        """See `Reward.read`."""
        return parse_ground_truth(ground_truth)

    def score(
        self, response: bytes, truth: GroundTruth, *, progress: float, step: int, think_open: bool = False
    ) -> Score:
        """See `Reward.score`."""
        return poster_score(
            response,
            truth,
            progress=progress if self.ramp else 1.0,
            beta_accuracy=self.beta_accuracy,
            beta_format=self.beta_format,
            grammar=self.grammar,
            think_open=think_open,
        )


@dataclass(frozen=True)
class ReferenceReward:
    """Preset `reference`, see `reference.py`. Its ramp follows the step."""

    ramp: bool
    variant: ReferenceVariant

    def read(self, ground_truth: str) -> ReferenceTruth:
        """See `Reward.read`."""
        return read_reference(ground_truth)

    def score(
        self, response: bytes, truth: ReferenceTruth, *, progress: float, step: int, think_open: bool = False
    ) -> Score:
        """See `Reward.score`."""
        return reference_score(response, truth, step=step, ramp=self.ramp, variant=self.variant, think_open=think_open)


def build_reward(config: Config) -> Reward:
    """The reward that `reward.*` asks for. Raises ConfigError for a function that cannot be loaded or called."""
    settings = config.reward
    if settings.function is not None:
        where = config.where("reward.function")
        return FunctionReward(load_reward(settings.function, where), f"reward.function={settings.function}")
    ramp, grammar = settings.ramp == "linear", GRAMMARS[config.data.answer_format]
    if settings.preset == "reference":
        return ReferenceReward(ramp, settings.reference_variant)
    if settings.preset == "poster":
        return PosterReward(grammar, ramp, settings.beta_accuracy, settings.beta_format)
    return PaperReward(grammar, ramp)
