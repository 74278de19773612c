"""The curriculum over region weights (arXiv 2509.21826, Eq. 16-17): from structure to reasoning."""

import torch

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.regions import Region


def anneal(region_weights: torch.Tensor, progress: float, settings: WeightsConfig) -> torch.Tensor:
    """The region weights [4] at progress nu in [0, 1]; the input is not changed.

    linear:  format      max(w_min, w - a_f nu)
             parameters  min(w_max, w + a_p nu)
             cot         min(w_max, w + a_t nu)
             tool name   w
    none:    w
    Raises ValueError for a progress outside [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}; it is step / total steps and lies in [0, 1]")
    if settings.curriculum == "none":
        return region_weights
    weights = region_weights.clone()
    falling, rising = [Region.FORMAT], [Region.PARAMETERS, Region.COT]
    slopes = weights.new_tensor([settings.alpha_parameters, settings.alpha_cot])
    weights[falling] = (weights[falling] - settings.alpha_format * progress).clamp(min=settings.w_min)
    weights[rising] = (weights[rising] + slopes * progress).clamp(max=settings.w_max)
    return weights
