"""What `profile` says of gradients: how these token weights and uniform ones compare on the same answers."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from rest_megatron.utils.text import Table, number

VARIANCE_COLUMNS = ("token weights", "variance", "+-", "|mean|^2", "relative", "groups")
GAIN_COLUMNS = ("token weights", "gain", "+-")
GAIN_NOTE = """\
gain: first order of the expected reward's change by one Adam step along the mean gradient of one half of the groups,
measured on the other half, for a learning rate of 1: only its ratio and difference between weightings tell something.
cosine: between the two mean gradients, far below 1 where the weights lead elsewhere. In our own runs, of a tiny
model on one task, the gain ranked five weightings as training did."""
VARIANCE_NOTE = """\
variance: of the gradient of one group of answers around the mean over groups, +- its standard error; relative: variance
over the squared norm of that mean (noise to signal), which is less certain still. Token weights change the expected
gradient, so a smaller variance alone can be a smaller gradient, and noise to signal did not rank methods in our own
runs, where weights with a quarter of uniform ones' learned worst. Take more prompts when in doubt."""


class Compared(NamedTuple):
    """Gains and variances under uniform weights and under these, as tables and in words."""

    gains: Table
    gain: str
    variances: Table
    change: str


def compared(measured: Mapping | None) -> Compared | None:
    """What was measured, by the names that `observe.profile` lists; None for nothing."""
    if not measured:
        return None
    uniform, weights, together = measured["uniform"], measured["weights"], measured["together"]
    arms = (("uniform", uniform), ("these", weights))
    gains = [(name, number(v["gain"], "{:.4g}"), number(v["gain_error"], "{:.2g}")) for name, v in arms]
    variances = [
        (
            name,
            number(v["variance"], "{:.4g}"),
            number(v["standard_error"], "{:.2g}"),
            number(v["mean_norm_squared"], "{:.4g}"),
            number(v["relative"], "{:.4g}") if v["mean_norm_squared"] > 0 else "not measurable",
            str(v["groups"]),
        )
        for name, v in arms
    ]
    return Compared(
        (GAIN_COLUMNS, gains), _gain(together), (VARIANCE_COLUMNS, variances), _variance_change(uniform, weights)
    )


def _gain(together: Mapping) -> str:
    """How the weights change gain and direction, in words."""
    ratio, cosine = together["gain_ratio"], together["cosine"]
    text = f"Against uniform weights, an Adam step with these gains {number(together['gain_difference'], '{:+.3g}')}"
    text += f" +- {number(together['gain_difference_error'], '{:.2g}')}"
    text += f", {ratio:.3f} times as much" if math.isfinite(ratio) else ""
    lost = "; the cosine cannot be measured, a mean gradient is lost in the noise. Profile more prompts"
    return text + (f"; cosine {cosine:.3f}" if math.isfinite(cosine) else lost)


def _variance_change(uniform: Mapping, weights: Mapping) -> str:
    """How the weights change the two variances, in words."""
    lost = [
        f"{number(v['mean_norm_squared'], '{:.4g}')} of {name} weights"
        for name, v in (("uniform", uniform), ("these", weights))
        if not v["mean_norm_squared"] > 0
    ]
    text = f"Against uniform weights, these change the variance by {_change(uniform['variance'], weights['variance'])}"
    if uniform["variance"] > 0 and math.isfinite(weights["difference_error"]):
        text += f" +- {100 * weights['difference_error'] / uniform['variance']:.1f}%"
    if lost:
        return (
            f"{text}; the relative one cannot be measured: the unbiased |mean|^2 is {' and '.join(lost)}, lost in the "
            "noise. Profile more prompts (profile.prompts)"
        )
    return f"{text}, the relative one by {_change(uniform['relative'], weights['relative'])}"


def _change(before: float, after: float) -> str:
    if not (math.isfinite(before) and math.isfinite(after) and before > 0):
        return "an unknown amount"
    return f"{100 * (after / before - 1):+.1f}%"
