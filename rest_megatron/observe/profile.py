"""What `profile` found, shown: per region entropy, score norm, bound and length (Figure 4 of arXiv 2509.21826).

Three forms of one plain dict: a table for the terminal, profile.json, and profile.html with its picture profile.png.
The dict holds

    regions            name -> tokens, share (of the tokens), length (mean tokens per answer), entropy (mean, nats),
                       score_norm (mean 1 - sum_v p_v^2), bound (mean 1 - exp(-H)), score_norm_max_over_bound (largest
                       token), lm_head (mean (1 - sum_v p_v^2) |h|^2), weight, weight_mass (share of the weight)
    model, prompts, answers, mean_length
    reward             name -> mean over answers
    lemma_2            tokens, violations, mean_ratio (of score norm to bound)
    gradient_variance  None, or uniform and weights, each: variance, standard_error, mean_norm_squared, relative,
                     groups, gain, gain_error; weights also difference_error, of the difference between the two
                     variances; together: cosine, gain_ratio, gain_difference, gain_difference_error
    score_norm         None, or the dict of `observe.score_norm`

A number that is nan or infinite was not measured.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from rest_megatron.observe.gradients import GAIN_NOTE, VARIANCE_NOTE, compared
from rest_megatron.observe.page import render
from rest_megatron.observe.picture import COLORS, subplots, to_png
from rest_megatron.observe.score_norm import NOTE, draw_norms, norm_tables
from rest_megatron.utils.text import Table, number, text_table

# Heading, key in a region, format.
COLUMNS = (
    ("tokens", "tokens", "{:d}"),
    ("share", "share", "{:.3f}"),
    ("length", "length", "{:.1f}"),
    ("entropy", "entropy", "{:.4f}"),
    ("score norm", "score_norm", "{:.4f}"),
    ("bound", "bound", "{:.4f}"),
    ("max/bound", "score_norm_max_over_bound", "{:.3f}"),
    ("lm head", "lm_head", "{:.4g}"),
    ("weight", "weight", "{:.3f}"),
    ("weight share", "weight_mass", "{:.3f}"),
)
LEGEND = """\
score norm: mean of 1 - sum p^2, the exact E||s_t||^2; bound: mean of 1 - exp(-H); lm head: mean of (1 - sum p^2) |h|^2;
max/bound: the largest ratio of score norm to bound at one token, at most 1 (Lemma 2)"""


def profile_table(profile: Mapping) -> str:
    """The profile as text: facts, a table of regions, Lemma 2, and what was measured of gradients."""
    blocks = ["  ".join(f"{name} {value}" for name, value in _facts(profile))]
    blocks += [text_table(*_region_table(profile)), LEGEND, _lemma_2(profile)]
    gradients = compared(profile["gradient_variance"])
    if gradients is not None:
        blocks += [text_table(*gradients.gains), gradients.gain, GAIN_NOTE]
        blocks += [text_table(*gradients.variances), gradients.change, VARIANCE_NOTE]
    if profile["score_norm"]:
        blocks += [_norms_heading(profile), *(text_table(*table) for table in norm_tables(profile["score_norm"])), NOTE]
    return "\n\n".join(blocks)


def write_profile(directory: Path, profile: Mapping) -> Path:
    """Write profile.json (what is not finite becomes null), profile.png and profile.html; returns the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(profile), indent=2, allow_nan=False)
    (directory / "profile.json").write_text(text + "\n", encoding="utf-8")
    png = _draw(profile)
    (directory / "profile.png").write_bytes(png)
    path = directory / "profile.html"
    page = render(
        "profile",
        title="Profile",
        facts=_facts(profile),
        bars=png,
        regions=_region_table(profile),
        legend=LEGEND,
        lemma_2=_lemma_2(profile),
        gradients=compared(profile["gradient_variance"]),
        gain_note=GAIN_NOTE,
        variance_note=VARIANCE_NOTE,
        norms=_norms(profile),
    )
    path.write_text(page, encoding="utf-8")
    return path


def _norms(profile: Mapping) -> dict | None:
    """What the page shows of true score norms."""
    measured = profile["score_norm"]
    if not measured:
        return None
    return {
        "heading": _norms_heading(profile),
        "png": draw_norms(measured),
        "tables": norm_tables(measured),
        "note": NOTE,
    }


def _norms_heading(profile: Mapping) -> str:
    measured = profile["score_norm"]
    return f"True score norm of {measured['tokens']} tokens, by {measured['passes']} backward passes"


def _facts(profile: Mapping) -> list[tuple[str, str]]:
    facts = [(name, str(profile[name])) for name in ("model", "prompts", "answers")]
    facts.append(("mean length", number(profile["mean_length"], "{:.1f}")))
    return facts + [(name, number(value, "{:.3f}")) for name, value in profile["reward"].items()]


def _region_table(profile: Mapping) -> Table:
    rows = [
        (name, *(number(region[key], form) for _, key, form in COLUMNS)) for name, region in profile["regions"].items()
    ]
    return ("region", *(heading for heading, _, _ in COLUMNS)), rows


def _lemma_2(profile: Mapping) -> str:
    lemma = profile["lemma_2"]
    return (
        f"Lemma 2, 1 - sum p^2 <= 1 - exp(-H): {lemma['violations']} of {lemma['tokens']} tokens break it; "
        f"the score norm is {number(lemma['mean_ratio'], '{:.3f}')} of its bound on average"
    )


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw(profile: Mapping) -> bytes:
    """Bars per region: entropy, exact score norm beside its bound, length."""
    names, regions = list(profile["regions"]), list(profile["regions"].values())
    figure, (entropy, norm, length) = subplots(1, 3, (14, 4))
    entropy.bar(names, [region["entropy"] for region in regions], color=COLORS[0])
    entropy.set_title("mean entropy (nats)", fontsize=11)
    for shift, key, label, color in (
        (-0.2, "score_norm", "exact: 1 - sum p^2", COLORS[0]),
        (0.2, "bound", "bound: 1 - exp(-H)", COLORS[1]),
    ):
        places = [i + shift for i in range(len(names))]
        norm.bar(places, [region[key] for region in regions], width=0.4, color=color, label=label)
    norm.set_xticks(range(len(names)), names)
    norm.set_title("mean squared norm of the score", fontsize=11)
    norm.legend(fontsize=8, frameon=False, loc="upper left")
    length.bar(names, [region["length"] for region in regions], color=COLORS[2])
    length.set_title("tokens per answer", fontsize=11)
    return to_png(figure)
