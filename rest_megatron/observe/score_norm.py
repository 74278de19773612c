"""What the true score norms of some tokens say of the proxies that weights go by (the third open question of
arXiv 2509.21826): by region, against each other, and in the variance each would leave.

The dict that `summary` gives, and profile.json holds as `score_norm`:

    tokens, passes   how many tokens, and backward passes for them
    regions          format, tool_name, parameters, cot, all -> tokens, norm, norm_error (of the mean), sampled, ends
                     (share in embedding and LM head), mean of each of PROXIES, factor (norm over 1 - sum p^2),
                     tightness (mean of (1 - sum p^2) / (1 - exp(-H))), tightness_of_means, spearman and log_pearson of
                     each proxy
    weights          norm and each of PROXIES -> format, tool_name, parameters, cot: Theorem 2's region weights, mean 1
                     over regions; clamped: the same within the weights' clamp; variance, variance_clamped: predicted,
                     against uniform weights
    extremes         the tokens where norm over 1 - sum p^2 is largest and smallest, those that are all but sure apart
    each             every token

Means of "all" count each region by its share of all tokens, whatever was drawn of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.regions import Region
from rest_megatron.method.score_norm import correlations, predicted_variance, region_weights
from rest_megatron.observe.picture import COLORS, subplots, to_png
from rest_megatron.utils.text import Table, number

PROXIES = {"entropy": "H", "bound": "1-e^-H", "collision": "1-c", "lm_head": "(1-c)|h|^2"}
"""By name; c is sum_v p_v^2."""
SHOWN = 5
LEAST_UNSURE = 1e-3
"""Of 1 - c of a token that is shown as an extreme: below it both numbers are mostly rounding."""
NOTE = """\
true: expectation over next tokens of the squared norm of the gradient of log p over all parameters, likely tokens
exactly, the rest by draws, +- the standard error of the mean; factor: true over 1 - c, c = sum p^2; ends: share of it
in embedding and LM head; tight: mean of (1 - c) over its bound 1 - e^-H. A proxy is as good as its rank (Spearman) and
log correlation with the truth, and its weights are as good as the variance they leave: uniform weights leave 1. Least
variance at mean weight 1 is no aim by itself: where a token is sure there is little to learn, too."""


def summary(tokens: Sequence[Mapping], shares: Sequence[float], settings: WeightsConfig) -> dict[str, Any]:
    """The dict above.

    tokens: the fields of `step.score_norm.TokenNorm`, at least one. shares: of each region among all tokens, those that
    were not drawn included.
    """
    values = _columns(tokens)
    regions = values.pop("region")
    seen = [region for region in Region if (regions == region.label).any()]
    found = {region.label: _described(_at(values, regions == region.label)) for region in seen}
    share = np.array([shares[region] for region in seen])
    everything = _described(values)
    for name in ("norm", "sampled", *PROXIES):
        everything[name] = float(share @ [found[region.label][name] for region in seen])
    everything["norm_error"] = math.sqrt(float(share**2 @ [found[region.label]["norm_error"] ** 2 for region in seen]))
    everything["factor"] = everything["norm"] / everything["collision"]
    everything["tightness_of_means"] = everything["collision"] / everything["bound"]
    unsure = np.flatnonzero(values["collision"] > LEAST_UNSURE)
    order = unsure[np.argsort(values["norm"][unsure] / values["collision"][unsure])]
    extreme = [*order[::-1][:SHOWN], *order[:SHOWN][::-1]] if len(order) > 2 * SHOWN else order[::-1]
    return {
        "tokens": len(tokens),
        "passes": int(sum(token["passes"] for token in tokens)),
        "regions": found | {"all": everything},
        "weights": {name: _weights(found, share, name, settings) for name in ("norm", *PROXIES)},
        "extremes": [dict(tokens[i]) for i in extreme],
        "each": [dict(token) for token in tokens],
    }


def norm_tables(measured: Mapping) -> tuple[Table, Table, Table, Table]:
    """Regions, correlations, weights, and the tokens where the proxies fail most."""
    regions = measured["regions"]
    return _region_table(regions), _correlation_table(regions), _weight_table(measured), _extreme_table(measured)


def draw_norms(measured: Mapping) -> bytes:
    """The true norm of each token over each of two proxies, as the bytes of a PNG."""
    values = _columns(measured["each"])
    figure, axes = subplots(1, 2, (14, 5))
    for each, name in zip(axes, ("bound", "collision"), strict=True):
        for region, color in zip(Region, COLORS, strict=False):
            own = (values["region"] == region.label) & (values[name] > 0) & (values["norm"] > 0)
            each.scatter(values[name][own], values["norm"][own], s=9, alpha=0.6, color=color, label=region.label)
        each.set(xscale="log", yscale="log", xlabel=f"proxy: {PROXIES[name]}")
        each.set_title("squared norm of the score, whole model", fontsize=11)
        each.legend(fontsize=8, frameon=False, loc="upper left")
    return to_png(figure)


def _columns(tokens: Sequence[Mapping]) -> dict[str, np.ndarray]:
    names = ("region", "norm", "sampled", "ends", "entropy", "hidden_norm_squared")
    values = {name: np.array([token[name] for token in tokens]) for name in names}
    values["collision"] = 1.0 - np.array([token["collision"] for token in tokens])
    values["bound"] = -np.expm1(-values["entropy"])
    values["lm_head"] = values["collision"] * values["hidden_norm_squared"]
    return values


def _at(values: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: value[rows] for name, value in values.items()}


def _described(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    count, norm = len(values["norm"]), values["norm"]
    means = {name: float(values[name].mean()) for name in ("norm", "sampled", *PROXIES)}
    unsure = values["bound"] > 1e-9
    tightness = values["collision"][unsure] / values["bound"][unsure]
    found = {name: correlations(values[name], norm) for name in PROXIES}
    return {
        "tokens": count,
        **means,
        "norm_error": float(norm.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
        "ends": float(np.nansum(values["ends"] * norm) / norm.sum()) if norm.sum() > 0 else math.nan,
        "factor": means["norm"] / means["collision"] if means["collision"] > 0 else math.nan,
        "tightness": float(tightness.mean()) if unsure.any() else math.nan,
        "tightness_of_means": means["collision"] / means["bound"] if means["bound"] > 0 else math.nan,
        "spearman": {name: pair[0] for name, pair in found.items()},
        "log_pearson": {name: pair[1] for name, pair in found.items()},
    }


def _weights(found: Mapping, share: np.ndarray, name: str, settings: WeightsConfig) -> dict[str, Any]:
    means = np.maximum([region[name] for region in found.values()], 1e-6)
    truth = np.array([region["norm"] for region in found.values()])
    weights = region_weights(means)
    clamped = weights.clip(settings.clamp_min, settings.clamp_max)
    return {
        **dict(zip(found, weights.tolist(), strict=True)),
        "clamped": dict(zip(found, clamped.tolist(), strict=True)),
        "variance": predicted_variance(share, weights, truth),
        "variance_clamped": predicted_variance(share, clamped, truth),
    }


def _region_table(regions: Mapping) -> Table:
    header = ("region", "tokens", "true", "+-", *PROXIES.values(), "factor", "ends", "tight")
    rows = [
        (
            name,
            str(region["tokens"]),
            *(number(region[key], "{:.3g}") for key in ("norm", "norm_error", *PROXIES, "factor")),
            *(number(region[key], "{:.2f}") for key in ("ends", "tightness")),
        )
        for name, region in regions.items()
    ]
    return header, rows


def _correlation_table(regions: Mapping) -> Table:
    rows = []
    for proxy, formula in PROXIES.items():
        pairs = [(region["spearman"][proxy], region["log_pearson"][proxy]) for region in regions.values()]
        rows.append((formula, *(f"{number(a, '{:.3f}')} / {number(b, '{:.3f}')}" for a, b in pairs)))
    return ("rank / log correlation", *regions), rows


def _weight_table(measured: Mapping) -> Table:
    names = [name for name in measured["regions"] if name != "all"]
    rows = [
        (
            PROXIES.get(source, "true"),
            *(number(own[name], "{:.2f}") for name in names),
            number(own["variance"], "{:.3f}"),
            number(own["variance_clamped"], "{:.3f}"),
        )
        for source, own in measured["weights"].items()
    ]
    return ("weights from", *names, "variance", "clamped"), rows


def _extreme_table(measured: Mapping) -> Table:
    rows = [
        (
            f"{one['before']}[{one['token']}]{one['after']}",
            one["region"],
            number(one["norm"] / (1.0 - one["collision"]) if one["collision"] < 1.0 else math.nan, "{:.4g}"),
            number(one["norm"], "{:.3g}"),
            number(one["probability"], "{:.3f}"),
            number(one["entropy"], "{:.3g}"),
        )
        for one in measured["extremes"]
    ]
    return ("where 1 - c fails most: token in brackets", "region", "factor", "true", "p", "H"), rows
