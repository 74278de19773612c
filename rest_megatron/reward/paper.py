"""Scores of answers, and the reward of preset `paper` (arXiv 2509.21826; ramp direction of the published code).

    total = format + correctness, over progress nu
    format      = (2 - nu) * S_format                            0 .. 2 falling to 0 .. 1
    correctness = (2 + nu) * (2 * S - 1)                         -2 .. 2 widening to -3 .. 3
    S           = S_acc if S_format = 1, else S_acc / 2

A perfect answer scores 4 at any nu. S_format in {0, 1} is strict: no problem of `parse`'s table, and exactly the
sections the ground truth has. An answer that breaks the format keeps half of S_acc: nothing that the format forbids
(two blocks, junk, a missing thought) earns full marks, yet better calls still score higher while format is learned.

With K wanted calls of n_i parameters each and P made calls,

    S_acc = (J_names + sum over matched pairs of [J_parameters + equal values]) / (1 + max(1, P/K) * sum_i (1 + n_i))

J is a Jaccard index, of names with multiplicity. Pairs share their name and come from the best assignment. Values are
equal when their JSON is, types included. A call beyond the wanted number widens the denominator by a mean call, so
guessing twice does not pay; a call that cannot be read counts as made and matches nothing.

| ground truth  | answer                                 | S_acc        |
|---------------|----------------------------------------|--------------|
| calls         | no call                                | 0            |
| calls         | calls, with or without a response      | as above     |
| response only | a response and no tool_call            | 1            |
| response only | a tool_call, readable or not           | 0            |
| response only | neither                                | 0            |

Whether a response beside calls is wanted is a matter of format. What a response says is not judged.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from rest_megatron.grammar import TOOLRL, Grammar
from rest_megatron.reward.parse import Answer, Call, parse
from rest_megatron.types import Score

BROKEN_FORMAT_SHARE = 0.5
# Of two best assignments the one with more equal values counts, so that the parts do not depend on the order of calls.
TIE_BREAK = 2.0**-40
ACCURACY_PARTS = ("name", "parameter_names", "parameter_values", "exact")  # of Score.parts, beside format

# What a ground truth may get wrong: nothing of it is used here.
_TOLERATED = {"no_think", "tag_in_response", "unknown_key", "missing_newline"}


@dataclass(frozen=True)
class GroundTruth:
    """The wanted action: calls in any order, a response, or both."""

    calls: tuple[Call, ...]
    response: bool


@dataclass(frozen=True)
class Measure:
    """An answer against its ground truth before any scale: S_acc; parts (S_format among them) and reason of Score."""

    accuracy: float
    parts: dict[str, float]
    reason: str


def parse_ground_truth(text: str) -> GroundTruth:
    """Reads a ground truth in the format of the answers. Raises ValueError with the reason."""
    answer = parse(text.encode("utf-8"))
    problems = [problem for problem in answer.problems if problem not in _TOLERATED]
    if problems:
        raise ValueError(f"ground truth is not a readable action: {', '.join(problems)}")
    if not answer.calls and not answer.response:
        raise ValueError("ground truth has neither a call in <tool_call> nor a text in <response>")
    return GroundTruth(tuple(call for call in answer.calls if call is not None), answer.response)


def score(
    response: bytes,
    ground_truth: GroundTruth,
    *,
    progress: float,
    grammar: Grammar = TOOLRL,
    think_open: bool = False,
) -> Score:
    """The reward of preset `paper`. Never raises on any bytes; progress nu outside [0, 1] raises ValueError.

    response, grammar, think_open: see `measure`.
    """
    check_progress(progress)
    measured = measure(response, ground_truth, grammar, think_open=think_open)
    format_ = measured.parts["format"] * (2.0 - progress)
    share = 1.0 if format_ else BROKEN_FORMAT_SHARE
    correctness = (2.0 + progress) * (2.0 * share * measured.accuracy - 1.0)
    return Score(format_ + correctness, format_, correctness, measured.parts, measured.reason)


def check_progress(progress: float) -> None:
    """Raises ValueError unless progress nu lies in [0, 1]."""
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}; it is step / total steps and lies in [0, 1]")


def measure(
    response: bytes, ground_truth: GroundTruth, grammar: Grammar = TOOLRL, *, think_open: bool = False
) -> Measure:
    """S_format, S_acc and its parts of an answer. Never raises on any bytes.

    response: the sampled tokens' bytes without the end-of-turn token. grammar: how the answer is written. think_open:
    the prompt has already opened the thought; ValueError where the grammar has none.
    """
    answer = parse(response, grammar, think_open=think_open)
    format_problem = _format_problem(answer, ground_truth)
    if ground_truth.calls:
        accuracy, parts, accuracy_problem = _call_accuracy(answer.calls, ground_truth.calls)
    else:
        accuracy = float(answer.response and not answer.tool_call)
        parts = dict.fromkeys(ACCURACY_PARTS, accuracy)
        accuracy_problem = ""  # the format problem says it: unwanted call or no response
    parts = {"format": 0.0 if format_problem else 1.0} | parts
    return Measure(accuracy, parts, format_problem or accuracy_problem or "ok")


def _format_problem(answer: Answer, ground_truth: GroundTruth) -> str:
    """The first reason why S_format is 0, or ""."""
    if answer.problems:
        return answer.problems[0]
    if answer.tool_call and not ground_truth.calls:
        return "unwanted_tool_call"
    if answer.response and not ground_truth.response:
        return "unwanted_response" if answer.tool_call or not ground_truth.calls else "no_tool_call"
    if ground_truth.calls and not answer.tool_call:
        return "no_tool_call"
    if ground_truth.response and not answer.response:
        return "no_response"
    return ""


def _call_accuracy(made: tuple[Call | None, ...], wanted: tuple[Call, ...]) -> tuple[float, dict[str, float], str]:
    """(S_acc, parts, what is wrong or "")."""
    made_names = Counter(call.name if call else None for call in made)
    wanted_names: Counter[str | None] = Counter(call.name for call in wanted)
    names = (made_names & wanted_names).total() / (made_names | wanted_names).total()
    pairs = [pair for name in wanted_names for pair in _matched(made, wanted, name)]
    similarity = sum(jaccard for jaccard, _ in pairs)
    equal = sum(values for _, values in pairs)

    excess = max(1.0, len(made) / len(wanted))
    num_values = sum(len(call.parameters) for call in wanted)
    accuracy = (names + similarity + equal) / (1 + excess * (len(wanted) + num_values))
    parameter_names = similarity / (excess * len(wanted))
    parts = {
        "name": names,
        "parameter_names": parameter_names,
        "parameter_values": equal / (excess * num_values) if num_values else parameter_names,
        "exact": float(accuracy == 1.0),
    }
    return accuracy, parts, calls_problem(len(made), len(wanted), parts)


def calls_problem(made: int, wanted: int, parts: dict[str, float]) -> str:
    """The first thing wrong with `made` calls where `wanted` are, or ""."""
    checks = {
        "no_tool_call": made == 0,
        "missing_call": made < wanted,
        "extra_call": made > wanted,
        "wrong_name": parts["name"] < 1.0,
        "wrong_parameter_names": parts["parameter_names"] < 1.0,
        "wrong_parameter_values": parts["parameter_values"] < 1.0,
    }
    return next((problem for problem, wrong in checks.items() if wrong), "")


def _matched(made: tuple[Call | None, ...], wanted: tuple[Call, ...], name: str | None) -> list[tuple[float, int]]:
    """(Jaccard of parameter names, equal values) of each pair in the best assignment of the calls named `name`."""
    ours = [call.parameters for call in made if call and call.name == name]
    theirs = [call.parameters for call in wanted if call.name == name]
    if not ours:
        return []
    names = _as_bits([call.keys() for call in theirs], [call.keys() for call in ours])
    members = _as_bits([call.items() for call in theirs], [call.items() for call in ours])
    bits = list(zip(map(len, theirs + ours), names, members, strict=True))
    agreement = [[_agreement(call, target) for target in bits[: len(theirs)]] for call in bits[len(theirs) :]]
    profit = np.array([[jaccard + equal * (1.0 + TIE_BREAK) for jaccard, equal in row] for row in agreement])
    return [agreement[row][column] for row, column in zip(*linear_sum_assignment(profit, maximize=True), strict=True)]


def _as_bits(wanted: Sequence[Iterable[Hashable]], made: Sequence[Iterable[Hashable]]) -> list[int]:
    """Each set, first those wanted, as the bits of an integer: all pairs of large sets compare in a microsecond each.

    Made items that no wanted set has are left out.
    """
    bit = {item: number for number, item in enumerate({item for items in wanted for item in items})}
    return [sum(1 << bit[item] for item in items if item in bit) for items in [*wanted, *made]]


def _agreement(call: tuple[int, int, int], target: tuple[int, int, int]) -> tuple[float, int]:
    """(Jaccard of parameter names, equal values) of two calls: number of parameters, bits of names, of members."""
    shared = (call[1] & target[1]).bit_count()
    union = call[0] + target[0] - shared
    return (shared / union if union else 1.0), (call[2] & target[2]).bit_count()
