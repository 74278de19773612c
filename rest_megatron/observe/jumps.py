"""Whether a probability has left its running range.

On the scale of log-odds log(p / (1 - p)), where a slow rise towards 1 keeps a steady pace: from 0.92 to 0.99 is 2.2, as
from 0.99 to 0.999. Probabilities are held within [0.001, 0.999]: what happens nearer to 0 or 1 rests on a few tokens.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

DEVIATIONS = 5.0
"""After 10 values of a normal distribution the next one is further off in one of 1,000 steps (Student's t). A steady
trend stays within: the deviation of 10 values is 0.55 of the next one's distance from their mean."""
EDGE = 0.001


def log_odds(probability: float) -> float:
    """In nats, within +-6.9."""
    held = min(max(probability, EDGE), 1 - EDGE)
    return math.log(held / (1 - held))


def probability(odds: float) -> float:
    """What has these log-odds."""
    return 1 / (1 + math.exp(-odds))


def usual_range(values: Sequence[float], floor: float) -> tuple[float, float]:
    """Lowest and highest usual value after `values`: their mean -+ the larger of `floor` and 5 standard deviations.

    values: log-odds of the last steps, at least one; of a single one the deviation counts as 0.
    """
    mean, deviation = fmean(values), stdev(values) if len(values) > 1 else 0.0
    margin = max(floor, DEVIATIONS * deviation)
    return mean - margin, mean + margin
