"""What a step's answers look like, in numbers."""

from collections.abc import Sequence
from statistics import fmean

from rest_megatron.method.advantages import zero_variance_groups
from rest_megatron.types import Experience, Sample


def length_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean number of sampled tokens, and the share of answers that ended by themselves."""
    return {
        "rollout/length": fmean(s.num_sampled for s in samples),
        "rollout/stopped": fmean(s.finish_reason == "stop" for s in samples),
    }


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """Length and end of the answers, speed of sampling, groups that teach nothing, and groups trained on.

    Answers of an earlier run took no time, and have no speed.
    """
    samples = [sample for group in experience.groups for sample in group]
    metrics = length_metrics(samples) | {
        "rollout/answers": float(len(samples)),
        "rollout/zero_variance_groups": float(zero_variance_groups(experience.totals).double().mean()),
        "rollout/groups_trained": float(experience.num_trained),
        "rollout/rounds": float(experience.rounds),
    }
    if experience.seconds:
        metrics["rollout/tokens_per_second"] = sum(s.num_sampled for s in samples) / experience.seconds
    return metrics
