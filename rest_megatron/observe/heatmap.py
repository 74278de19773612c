"""Where the weight goes in one answer: its tokens in their order, coloured by weight and marked by region.

As terminal text, and as a static HTML page. The scale of colours is the same for every answer: blue below weight 1,
orange above, full at 0 and at 2.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from rest_megatron.observe.page import render
from rest_megatron.observe.picture import COLORS
from rest_megatron.observe.regions import REGIONS
from rest_megatron.observe.response import Response, visible
from rest_megatron.utils.text import text_table

HEADINGS = {"entropy": "entropy", "log_probs": "log-prob", "ratio": "ratio", "clipped": "clipped"}
LETTERS = dict(zip(REGIONS, "FNPC", strict=True))
# Select graphic rendition: black on one of the 256 colours, light blue to white to orange; how a region is set.
BACKGROUNDS = (75, 111, 117, 153, 189, 231, 230, 223, 216, 215, 209)
RENDITIONS = dict(zip(REGIONS, ("", ";1;4", ";4", ";3"), strict=True))
LOW, MIDDLE, HIGH = (110, 165, 225), (255, 255, 255), (245, 150, 60)
SCALE = (0.0, 0.5, 1.0, 1.5, 2.0)


class Token(NamedTuple):
    """One token as the page shows it."""

    text: str
    line: str
    """The text on one line."""
    id: int
    region: str
    background: str
    title: str
    """All that is known of it, in words."""
    numbers: list[str]
    """Its measures and its weight, "" for one it lacks."""


def terminal_text(response: Response, *, colors: bool) -> str:
    """The answer as text: facts, tokens with their region's letter and weight at each change, sums of each region.

    colors: with ANSI escapes for the weight (background) and the region (bold, underline, italic).
    """
    key = ", ".join(f"{LETTERS[region]} {region}" for region in REGIONS)
    facts = "\n".join(f"{name:<20} {value}" for name, value in response.facts.items())
    answer = "".join(_terminal_run(*run, colors=colors) for run in _runs(response))
    sums = text_table(*_region_table(response))
    return "\n\n".join(block for block in (facts, f"[region weight]: {key}", answer, sums) if block) + "\n"


def html_page(response: Response, title: str) -> str:
    """The answer as a page: facts, tokens, sums of each region, and a table with one row per token."""
    return render(
        "heatmap",
        title=title,
        facts=list(response.facts.items()),
        regions=dict(zip(REGIONS, COLORS, strict=False)),
        scale=[(f"{weight:g}", _background(weight)) for weight in SCALE],
        tokens=[_token(response, i) for i in range(len(response.ids))],
        sums=_region_table(response),
        headings=[*(HEADINGS[name] for name in response.measures), "weight"],
    )


def _runs(response: Response) -> list[tuple[str, float, str]]:
    """(region, weight, text) of neighbours with the same region and, to two digits, weight."""
    runs = groupby(range(len(response.ids)), key=lambda i: (response.regions[i], round(response.weights[i], 2)))
    return [(*key, _joined(response, run)) for key, run in runs]


def _joined(response: Response, tokens: Iterable[int]) -> str:
    """The text of neighbours, in which a character that their tokens cut is whole."""
    stretches = groupby(tokens, key=lambda i: bool(response.pieces[i]))
    shown = []
    for spelled, stretch in stretches:
        own = list(stretch)
        shown += [visible(b"".join(response.pieces[i] for i in own))] if spelled else [response.texts[i] for i in own]
    return "".join(shown)


def _terminal_run(region: str, weight: float, text: str, *, colors: bool) -> str:
    marker = f"[{LETTERS[region]} {weight:.2f}]"
    if not colors:
        return marker + text
    level = round(min(weight, 2.0) / 2 * (len(BACKGROUNDS) - 1))
    start, end = f"\x1b[38;5;16;48;5;{BACKGROUNDS[level]}{RENDITIONS[region]}m", "\x1b[0m"
    # A colour left on at the end of a line would fill it.
    return f"\x1b[2m{marker}{end}{start}" + text.replace("\n", f"{end}\n{start}") + end


def _background(weight: float) -> str:
    """A weight's colour, as CSS."""
    far, share = (LOW, 1 - weight) if weight < 1 else (HIGH, min(weight, 2.0) - 1)
    red, green, blue = (round(m + share * (f - m)) for m, f in zip(MIDDLE, far, strict=True))
    return f"rgb({red},{green},{blue})"


def _token(response: Response, i: int) -> Token:
    text, region, weight = response.texts[i], response.regions[i], response.weights[i]
    measures = _measures(response, i)
    known = [f"{HEADINGS[name]} {value}" for name, value in zip(response.measures, measures, strict=True) if value]
    return Token(
        text=text,
        line=text.replace("\n", ""),
        id=response.ids[i],
        region=region,
        background=_background(weight),
        title=", ".join([region, f"weight {weight:.3f}", *known]),
        numbers=[*measures, f"{weight:.3f}"],
    )


def _measures(response: Response, i: int) -> list[str]:
    """The measures of token i as text, "" for one it lacks."""
    values = ((name, column[i]) for name, column in response.measures.items())
    return [
        "" if math.isnan(value) else ("yes" if value else "no") if name == "clipped" else f"{value:.3f}"
        for name, value in values
    ]


def _region_table(response: Response) -> tuple[list[str], list[list[str]]]:
    """Header and rows: tokens and weight of each region with their shares, means of the measures, tokens clipped."""
    names = [name for name in response.measures if name != "log_probs"]
    header = ["region", "tokens", "share", "weight", "weight share", *(HEADINGS[name] for name in names)]
    count, total = len(response.ids), sum(response.weights)
    rows = []
    for region in REGIONS:
        members = [i for i, name in enumerate(response.regions) if name == region]
        weight = sum(response.weights[i] for i in members)
        share = f"{weight / total:.3f}" if total else ""
        summary = [_summary(name, [response.measures[name][i] for i in members]) for name in names]
        rows.append([region, str(len(members)), f"{len(members) / count:.3f}", f"{weight:.2f}", share, *summary])
    return header, rows


def _summary(name: str, values: Sequence[float]) -> str:
    """Mean of a measure over the tokens that have it, or how many are clipped; "" where none has."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    return str(int(sum(known))) if name == "clipped" else f"{sum(known) / len(known):.3f}"
