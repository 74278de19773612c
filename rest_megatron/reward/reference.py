"""The reward of preset `reference`: what the paper's published code computes, its defects included.

It works on text and finds tags wherever they stand. What it does that preset `paper` does not, on purpose here:

- Text before the last "<|im_start|>assistant" and after the first "<|im_end|>" is not looked at, so an answer that
  writes these markers chooses what is graded.
- Format is a matter of tags: text before, between and after the sections, several thoughts and a tool_call without
  any call all pass. Only first places are compared. A response may come with a tool_call when none is wanted.
- Which sections are wanted is read off the tags anywhere in the ground truth, its values included. Without a tag of an
  action any answer with one thought has the right format.
- The calls lie between the first <tool_call> and the next tag after it, so a thought that names the tag hides them;
  the rest of the answer may be anything.
- One line that is not JSON makes all calls worthless: a blank line, a trailing comma, a pretty-printed call.
- Calls are matched greedily in the order of the ground truth, and a match of 0 leaves its call to be matched again.
- Extra calls cost no more than the Jaccard index of the names.
- Values are equal as in Python: true, 1 and 1.0 are; NaN and repeated keys are read.
- Correctness is 0 when no call is wanted, whatever was called.
- Calls need "parameters"; "arguments" makes all of them worthless.

    score = J_names + sum over wanted calls of the best unused same-named call's [J_parameters + equal values]
    correctness = low + (high - low) * score / (1 + sum over wanted calls of (1 + parameters))

Equal lists of calls are worth `high` at once.

What format and correctness are worth at a step is a range, (worth when wrong, worth when right). The published code
picks its variant by environment variables; here it is `reward.reference_variant`, and its SCHEDULEREWARD is
`reward.ramp`. Its ramp runs over 150 steps whatever the length of the run.

|             | no ramp   | ramp, step s                                       |
|-------------|-----------|----------------------------------------------------|
| format      | (0, 1)    | (min(-1, -2 + 2 s/150), max(1, 2 - s/150))         |
| correctness | (-3, 3)   | (-(2 + s/150), 2 + s/150), at most 3 from zero     |

| variant             | what differs                                                                              |
|---------------------|-------------------------------------------------------------------------------------------|
| correct_max_1       | correctness (-1, 1)                                                                       |
| max_1_step_30_max_3 | correctness (-1, 1) before step 30; from there (-3, 3) and format (0, 0.5)                |
| coarse              | any list of calls but the wanted one is worth the least                                   |
| refined             | lists of names that are not equal, order included, count 0 instead of their Jaccard index |
| intermediate        | a wanted call counts 1 when an equal one was made, else 0                                 |

The last three change how calls are compared, see `reference_calls.py`; the others change the ranges. With a ramp, the
upper ends in this table are those it comes to at step 150: a ramp always starts from 2.

Where the published code is unbounded this is not: an answer of more than 64 KiB is worth the least, and so are more
than 64 lines in its tool_call; a ground truth beyond either limit is refused. Where the published code ends the run, on
a ground truth that is not JSON, `read_reference` raises.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rest_megatron.config.method import ReferenceVariant
from rest_megatron.reward.paper import ACCURACY_PARTS, Measure, calls_problem
from rest_megatron.reward.parse import MAX_BYTES, MAX_CALLS
from rest_megatron.reward.reference_calls import match_calls
from rest_megatron.types import Score

THINK = ("<think>", "</think>")
TOOL_CALL = ("<tool_call>", "</tool_call>")
RESPONSE = ("<response>", "</response>")
TURN_OPEN, TURN_CLOSE = "<|im_start|>assistant", "<|im_end|>"
RAMP_STEPS = 150
SWITCH_STEP = 30

Range = tuple[float, float]


@dataclass(frozen=True)
class ReferenceTruth:
    """calls: the JSON values on the lines of the first tool_call, of any type; None when there is no such tag."""

    calls: list[Any] | None
    response: bool


def read_reference(text: str) -> ReferenceTruth:
    """Reads a ground truth. Raises ValueError where the published code would end the run, or beyond a limit."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"ground truth is too_large: {len(text)} characters, at most {MAX_BYTES} are read")
    response = RESPONSE[0] in text
    if TOOL_CALL[0] not in text:
        return ReferenceTruth(None, response)
    try:
        return ReferenceTruth(_read_calls(text), response)
    except _Unreadable as problem:
        raise ValueError(f"ground truth has a tool_call that cannot be read: {problem}") from problem


def reference_score(
    response: bytes,
    truth: ReferenceTruth,
    *,
    step: int,
    ramp: bool,
    variant: ReferenceVariant = "none",
    think_open: bool = False,
) -> Score:
    """The published reward at a training step, counted from 1. Never raises on any bytes.

    variant: see the table above. think_open: the prompt has already opened the thought; the published code reads the
    prompt with the answer and so sees that tag. parts: as in `Score`, by this code's own comparison; without a wanted
    call they all are S_format, the only thing it judges then. reason: too_large, wrong_format, no_tool_call,
    too_many_calls, bad_json, bad_call, those of `calls_problem`, not_equal (equal calls, and still not the full score).
    """
    measured = _measure(response, truth, variant, think_open)
    low, high = format_range(step, ramp=ramp, variant=variant)
    format_ = high if measured.parts["format"] else low
    correctness = 0.0
    if truth.calls is not None:
        low, high = correctness_range(step, ramp=ramp, variant=variant)
        correctness = low + (high - low) * measured.accuracy
    return Score(format_ + correctness, format_, correctness, measured.parts, measured.reason)


def format_range(step: int, *, ramp: bool, variant: ReferenceVariant) -> Range:
    """(wrong, right) of the format at a training step, counted from 1."""
    high = 0.5 if variant == "max_1_step_30_max_3" and step >= SWITCH_STEP else 1.0
    if not ramp:
        return 0.0, high
    return min(-1.0, -2.0 + 2.0 * step / RAMP_STEPS), max(1.0, 2.0 - (2.0 - high) * step / RAMP_STEPS)


def correctness_range(step: int, *, ramp: bool, variant: ReferenceVariant) -> Range:
    """(nothing right, all right) of the calls at a training step, counted from 1."""
    small = variant == "correct_max_1" or (variant == "max_1_step_30_max_3" and step < SWITCH_STEP)
    high = 1.0 if small else 3.0
    if ramp:
        high = min(3.0, 2.0 + (high - 2.0) * step / RAMP_STEPS)
    return -high, high


def _measure(response: bytes, truth: ReferenceTruth, variant: ReferenceVariant, think_open: bool) -> Measure:
    if len(response) > MAX_BYTES:
        return Measure(0.0, {"format": 0.0} | _even_parts(0.0), "too_large")
    text = (THINK[0] if think_open else "") + response.decode("utf-8", "replace")
    text = text.rpartition(TURN_OPEN)[2].partition(TURN_CLOSE)[0].strip()
    form = float(_has_format(text, truth))
    if truth.calls is None:
        accuracy, parts, problem = 0.0, _even_parts(form), ""
    else:
        accuracy, parts, problem = _accuracy(text, truth.calls, variant)
    return Measure(accuracy, {"format": form} | parts, (problem or "ok") if form else "wrong_format")


def _has_format(text: str, truth: ReferenceTruth) -> bool:
    if truth.calls is None and not truth.response:
        return all(text.count(tag) == 1 for tag in THINK)
    wanted = (TOOL_CALL if truth.calls is not None else ()) + (RESPONSE if truth.response else ())
    if not truth.response and any(tag in text for tag in RESPONSE):
        return False
    places = [text.find(tag) for tag in THINK + wanted]
    in_order = places[0] >= 0 and all(a < b for a, b in pairwise(places))
    return in_order and all(text.count(tag) == 1 for tag in wanted)


def _accuracy(text: str, wanted: list[Any], variant: ReferenceVariant) -> tuple[float, dict[str, float], str]:
    """(score / its maximum, parts, what is wrong or "")."""
    if any(tag not in text for tag in TOOL_CALL):
        return 0.0, _even_parts(0.0), "no_tool_call"
    try:
        made = _read_calls(text)
    except _Unreadable as error:
        return 0.0, _even_parts(0.0), str(error)
    try:
        if made == wanted:
            return 1.0, _even_parts(1.0), ""
        match = match_calls(wanted, made, variant)
    except (TypeError, KeyError, AttributeError, RecursionError):  # not calls, as the published code finds out
        return 0.0, _even_parts(0.0), "bad_call"
    similarity = sum(jaccard for jaccard, _ in match.pairs)
    equal = sum(values for _, values in match.pairs)
    possible = 1 + len(wanted) + match.num_values
    accuracy = 0.0 if variant == "coarse" else (match.names + similarity + equal) / possible
    parts = {
        "name": match.names,
        "parameter_names": similarity / len(wanted),
        "parameter_values": (equal / match.num_values) if match.num_values else similarity / len(wanted),
        "exact": float(accuracy == 1.0),
    }
    problem = calls_problem(len(made), len(wanted), parts)
    return accuracy, parts, problem or ("" if accuracy == 1.0 else "not_equal")


class _Unreadable(ValueError):
    """The calls cannot be read; the message is the reason."""


def _read_calls(text: str) -> list[Any]:
    """One JSON value per line from the first <tool_call> to the next tag of a tool_call. Raises _Unreadable."""
    lines = text.split(TOOL_CALL[0], 2)[1].split(TOOL_CALL[1], 1)[0].strip().split("\n")
    if len(lines) > MAX_CALLS:
        raise _Unreadable("too_many_calls")
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits is a ValueError, too
        raise _Unreadable("bad_json") from error


def _even_parts(value: float) -> dict[str, float]:
    return dict.fromkeys(ACCURACY_PARTS, value)
