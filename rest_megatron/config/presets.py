"""Presets of `method.preset`: values for `weights` and `algorithm` that lie between the defaults and explicit keys."""

PRESETS: dict[str, dict[str, dict]] = {
    # The schema's defaults are the paper's.
    "paper": {},
    # Every region weighs 1 before and after normalisation, at every step.
    "grpo": {"weights": {"rule": "constant", "curriculum": "none"}},
}
