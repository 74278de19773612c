"""Advantages of groups of scores, in exact fractions; see `files`."""

import math
from fractions import Fraction

EPSILON = 1e-6
GROUPS = {
    "one right of four": [4.0, -2.0, -2.0, -2.0],
    "all alike": [1.25, 1.25, 1.25, 1.25],
    "far from zero": [1000.5, 1000.25, 1001.0, 999.75],
    "a pair": [0.5, -0.5],
    "nearly alike": [2.0, 2.0, 2.0, 2.0009765625],
    "five": [3.0, 0.125, -1.5, 2.75, 0.0],
}
# Length, longest answer, buffer, penalty: -penalty * (length - (longest - buffer)) / buffer, held in -penalty .. 0.
LENGTHS = [(80, 100, 20, 1.0, 0.0), (85, 100, 20, 1.0, -0.25), (100, 100, 20, 0.5, -0.5), (100, 100, 0, 1.0, 0.0)]


def rows() -> list[dict]:
    """One row per group, then one per length."""
    groups = [
        {"kind": "group", "name": name, "scores": scores, **_group([Fraction(score) for score in scores])}
        for name, scores in GROUPS.items()
    ]
    keys = ("length", "max_new_tokens", "buffer", "penalty", "expected")
    return groups + [{"kind": "overlong"} | dict(zip(keys, case, strict=True)) for case in LENGTHS]


def _group(scores: list[Fraction]) -> dict[str, list[float]]:
    count = len(scores)
    mean = sum(scores) / count
    variance = sum((score - mean) ** 2 for score in scores) / (count - 1)  # of a sample
    deviation = math.sqrt(variance) + EPSILON
    return {
        "grpo": [float(score - mean) / deviation for score in scores],
        "dr_grpo": [float(score - mean) for score in scores],
        "rloo": [float(score - (sum(scores) - score) / (count - 1)) for score in scores],
    }
