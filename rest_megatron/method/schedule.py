"""From a statistic of each region to what its tokens weigh at one point of a run."""

from torch import Tensor

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.curriculum import anneal
from rest_megatron.method.feedback import FeedbackState, shift
from rest_megatron.method.weights import region_switches, region_weights


def scheduled_weights(statistic: Tensor, progress: float, feedback: FeedbackState, settings: WeightsConfig) -> Tensor:
    """Rule, curriculum and switches, one after the other: float64 of the statistic's shape.

    statistic: [4], or [N, 4] with a row per response, as for `region_weights`. progress drives the linear curriculum,
    feedback the other one.
    """
    weights = region_weights(statistic, settings)
    if settings.curriculum == "feedback":
        weights = shift(weights, feedback, settings)
    else:
        weights = anneal(weights, progress, settings)
    return weights * region_switches(settings).to(weights.device)
