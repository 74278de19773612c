"""A profile with made-up numbers, one region of which has no tokens."""

import math

NAN = math.nan


def region(tokens: int, share: float, length: float, entropy: float, norm: float, bound: float, weight: float) -> dict:
    return {
        "tokens": tokens,
        "share": share,
        "length": length,
        "entropy": entropy,
        "score_norm": norm,
        "bound": bound,
        "score_norm_max_over_bound": 0.998,
        "lm_head": 12.34567,
        "weight": weight,
        "weight_mass": share * weight,
    }


ABSENT = region(0, 0.0, 0.0, NAN, NAN, NAN, 1.0) | {"score_norm_max_over_bound": NAN, "lm_head": NAN}
PROFILE = {
    "regions": {
        "format": region(600, 0.6, 30.0, 0.05, 0.02, 0.03, 0.5),
        "tool_name": ABSENT,
        "parameters": region(150, 0.15, 7.5, 0.4, 0.2, 0.25, 1.0),
        "cot": region(250, 0.25, 12.5, 1.3, 0.5, 0.6, 2.0),
    },
    "score_norm": None,
    "model": "models/tiny",
    "answers": 20,
    "prompts": 5,
    "mean_length": 50.0,
    "reward": {"reward/mean": 2.5, "reward/format": 0.75},
    "lemma_2": {"tokens": 1000, "violations": 0, "mean_ratio": 0.8768},
    "gradient_variance": {
        "uniform": {
            "variance": 4.0,
            "standard_error": 0.5,
            "mean_norm_squared": 0.5,
            "relative": 8.0,
            "groups": 16,
            "gain": 2.5,
            "gain_error": 0.5,
        },
        "weights": {
            "variance": 1.0,
            "standard_error": 0.25,
            "difference_error": 0.3,
            "mean_norm_squared": 0.25,
            "relative": 4.0,
            "groups": 16,
            "gain": 3.0,
            "gain_error": 0.75,
        },
        "together": {"cosine": 0.875, "gain_ratio": 1.2, "gain_difference": 0.5, "gain_difference_error": 0.125},
    },
}
