"""The learned curriculum: weight leaves a region when its accuracy saturates, and goes to the next.

An answer to the second open question of arXiv 2509.21826: the linear curriculum (Eq. 16-17) follows the step number,
this one what the policy has learnt. The regions are learnt in the order of `Region`: format, tool name, parameters,
cot. Each of the first three has an accuracy (format rate, names, parameters) and from it a saturation s in [0, 1],
which rises to 1 while the accuracy has reached the target or stands still, and falls to 0 while it is learning.
A region hands on `feedback_shift` times its saturation, so its weight becomes

    w'_r = clamp(w_r + shift (s_{r-1} - s_r), w_min, w_max)        s before format and s of cot are 0 .

A saturation moves by at most `feedback_rate` a step, so a weight moves by at most 2 shift rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.regions import Region

T = TypeVar("T")

MEASURED = (Region.FORMAT, Region.TOOL_NAME, Region.PARAMETERS)
SMOOTHING = 0.9  # momentum of the accuracies' running mean: about the last ten steps
MIN_GAIN = 0.005  # a smaller rise of the running mean is not an improvement
MAX_DROP = 0.05  # after a larger fall below the best, a region has something to learn again


@dataclass(frozen=True)
class FeedbackState:
    """What the curriculum remembers; one value for each of MEASURED."""

    accuracy: tuple[float | None, ...] = (None,) * len(MEASURED)
    """Running mean of the accuracy; None before its first value."""
    best: tuple[float | None, ...] = (None,) * len(MEASURED)
    """Largest running mean so far, or since it last fell by more than MAX_DROP."""
    stale: tuple[int, ...] = (0,) * len(MEASURED)
    """Measured steps since it was reached."""
    saturation: tuple[float, ...] = (0.0,) * len(MEASURED)

    def metrics(self) -> dict[str, float]:
        """Saturation of each region whose accuracy has been measured; none before the curriculum is used."""
        measured = [region for region in MEASURED if self.accuracy[region] is not None]
        return {f"saturation/{region.label}": self.saturation[region] for region in measured}

    def to_dict(self) -> dict[str, list]:
        """As plain JSON: floats keep every bit."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, list]) -> "FeedbackState":
        """The state that `to_dict` wrote. Raises ValueError when it is not one."""
        names = {field.name for field in fields(cls)}
        if set(saved) != names or any(len(values) != len(MEASURED) for values in saved.values()):
            raise ValueError(
                f"state of the feedback curriculum {dict(saved)} must hold {len(MEASURED)} values for each of "
                f"{', '.join(sorted(names))}"
            )
        return cls(**{name: tuple(values) for name, values in saved.items()})


def update_feedback(state: FeedbackState, accuracy: Sequence[float | None], settings: WeightsConfig) -> FeedbackState:
    """The state after one more step.

    accuracy: this step's format rate, tool-name accuracy and parameter accuracy, each in [0, 1], or None when no
    answer measured it; then nothing about that region changes.
    Raises ValueError for an accuracy outside [0, 1].
    """
    for region, value in zip(MEASURED, accuracy, strict=True):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"accuracy of region {region.label} is {value}; it lies in [0, 1]")
        if value is not None:
            state = _update_region(state, region, value, settings)
    return state


def shift(region_weights: Tensor, state: FeedbackState, settings: WeightsConfig) -> Tensor:
    """The region weights after saturated regions have handed theirs on, of the input's shape.

    region_weights: [4], or [N, 4] with a row per answer; not changed.
    """
    saturation = torch.tensor([0.0, *state.saturation, 0.0], dtype=torch.float64, device=region_weights.device)
    moved = region_weights - settings.feedback_shift * saturation.diff()
    return moved.clamp(settings.w_min, settings.w_max)


def _update_region(state: FeedbackState, region: Region, value: float, settings: WeightsConfig) -> FeedbackState:
    last, best = state.accuracy[region], state.best[region]
    accuracy = value if last is None else SMOOTHING * last + (1.0 - SMOOTHING) * value
    renewed = best is None or accuracy > best + MIN_GAIN or accuracy < best - MAX_DROP
    best, stale = (accuracy, 0) if renewed else (best, state.stale[region] + 1)
    saturated = accuracy >= settings.feedback_target or stale >= settings.feedback_patience
    saturation = state.saturation[region]
    change = min(max(float(saturated) - saturation, -settings.feedback_rate), settings.feedback_rate)
    return FeedbackState(
        accuracy=_with(state.accuracy, region, accuracy),
        best=_with(state.best, region, best),
        stale=_with(state.stale, region, stale),
        saturation=_with(state.saturation, region, saturation + change),
    )


def _with(values: tuple[T, ...], position: int, value: T) -> tuple[T, ...]:
    return (*values[:position], value, *values[position + 1 :])
