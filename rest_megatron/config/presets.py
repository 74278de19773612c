"""Presets: values that lie between the defaults and explicit keys.

`method.preset` comes first; it may choose `weights.preset` and `reward.preset`, which fill their own section.
"""

# The schema's defaults are the paper's.
METHOD: dict[str, dict[str, dict]] = {
    "paper": {},
    "reference": {
        "weights": {"preset": "reference"},
        "reward": {"preset": "reference"},
        "algorithm": {"loss_aggregation": "token-mean", "clip_ratio_dual": 3.0},
    },
    "grpo": {"weights": {"preset": "uniform"}},
}
WEIGHTS: dict[str, dict] = {
    "paper": {},
    "reference": {"rule": "reference", "curriculum": "none"},
    # Every region weighs 1 before and after normalisation, at every step.
    "uniform": {"rule": "constant", "curriculum": "none"},
}
