"""Region weights from measured gradients: what each region adds to the step's gradient, over how much it varies.

The gradient of a group of answers is the sum of its regions' parts g_r. With weights w_r its mean, times the mean
gradient, is sum_r w_r s_r, and where regions are uncorrelated its variance is sum_r w_r^2 v_r,

    s_r = <E g_r, E g>      v_r = E|g_r|^2 - |E g_r|^2 ,

so that among weights of equal variance w_r ~ s_r / v_r gains most. It goes one step beyond Theorem 2, which asks for
little variance alone (w_r ~ 1 / v_r at equal numbers of tokens) and so would train on tokens that are sure, where there
is nothing to learn either. E g is the whole gradient, regions that are switched off (`weights.use_cot`) included: s_r
is what the reward gains, to first order, by a step along g_r, and the reward depends on every sampled token, whether or
not its own gradient is used. `actor/region_gradients.py` measures s_r and v_r. Vectors of four follow `regions.Region`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rest_megatron.config.method import WeightsConfig


@dataclass(frozen=True)
class MeasuredRegions:
    """Signal and noise of each region, [4] each; both 0 for a region without a gradient."""

    signal: tuple[float, ...]
    noise: tuple[float, ...]
    error: tuple[float, ...]
    """Standard error of the signal."""

    def to_dict(self) -> dict[str, list[float]]:
        """As plain JSON."""
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, list[float]]) -> "MeasuredRegions":
        """What `to_dict` gave."""
        return cls(**{name: tuple(own) for name, own in values.items()})


def measured_weights(base: Tensor, measured: MeasuredRegions, settings: WeightsConfig) -> Tensor:
    """float64 [4]: the rule's weights `base` [4], moved towards s_r / v_r as far as the measurement is sure of it.

    The ratios are scaled to mean 1 over the measured regions, negative ones counting 0. A distance d from the base, of
    standard error e, counts max(0, 1 - e^2 / d^2) of itself: nothing where it is within its error (the positive part of
    James and Stein's estimator; d^2 - e^2 is the true square without bias). Then the clamp of all rules holds. A region
    without a measured noise keeps its base, as do all where no signal is positive.
    """
    signal, noise, error = (base.new_tensor(values) for values in (measured.signal, measured.noise, measured.error))
    seen = noise > 0
    ratio = torch.where(seen, signal / noise.where(seen, 1.0), 0.0)
    mean = ratio.clamp(min=0.0).sum() / seen.sum()
    if not mean > 0:
        return base
    distance = ratio / mean - base
    spread = error / noise.where(seen, 1.0) / mean
    tiny = torch.finfo(torch.float64).tiny
    certain = (1.0 - spread.square() / distance.square().clamp(min=tiny)).clamp(min=0.0)
    moved = (base + distance * certain).clamp(settings.clamp_min, settings.clamp_max)
    return torch.where(seen, moved, base)
