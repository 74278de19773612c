"""What regions weigh at one point of a run: the rule, then the curriculum over it (arXiv 2509.21826, Eq. 16-17)."""

from torch import Tensor

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.feedback import shift
from rest_megatron.method.measured import measured_weights
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import WeightState, region_switches, region_weights


def scheduled_weights(statistic: Tensor, progress: float, state: WeightState, settings: WeightsConfig) -> Tensor:
    """Rule, measurement, curriculum and switches, one after the other: float64 of the statistic's shape.

    statistic: [4], or [N, 4] with a row per answer, as for `region_weights`. progress drives the linear curriculum,
    state.feedback the other one; of state nothing else is read but its measurement.
    """
    weights = region_weights(statistic, settings)
    if state.measured is not None:
        weights = measured_weights(weights, state.measured, settings)
    if settings.curriculum == "feedback":
        weights = shift(weights, state.feedback, settings)
    else:
        weights = anneal(weights, progress, settings)
    return weights * region_switches(settings).to(weights.device)


def anneal(region_weights: Tensor, progress: float, settings: WeightsConfig) -> Tensor:
    """Eq. 16-17: the region weights at progress nu in [0, 1], of the input's shape; the input is not changed.

    region_weights: [4], or [N, 4] with a row per answer.
    linear:  format      max(w_min, w - a_f nu)
             parameters  min(w_max, w + a_p nu)
             cot         min(w_max, w + a_t nu)
             tool name   w
    none:    w
    Raises ValueError for a progress outside [0, 1] and for a curriculum that progress does not drive.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}; it is step / total steps and lies in [0, 1]")
    if settings.curriculum == "none":
        return region_weights
    if settings.curriculum != "linear":
        raise ValueError(f"curriculum {settings.curriculum!r} does not follow progress; use linear or none")
    weights = region_weights.clone()
    rising = [Region.PARAMETERS, Region.COT]
    slopes = weights.new_tensor([settings.alpha_parameters, settings.alpha_cot])
    falling = weights[..., Region.FORMAT] - settings.alpha_format * progress
    weights[..., Region.FORMAT] = falling.clamp(min=settings.w_min)
    weights[..., rising] = (weights[..., rising] + slopes * progress).clamp(max=settings.w_max)
    return weights
