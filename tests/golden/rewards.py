"""Answers of our own, with format and accuracy by hand and the scores that follow in each preset; see `files`.

Of the paper: S_acc = (J_names + sum over pairs of [J_parameters + equal values]) / (1 + max(1, P/K) sum_i (1 + n_i)),
halved in the correctness where the format is broken. Of the published code the same sum without the factor max(1, P/K),
over greedy pairs, with Python's equality; one line that is not JSON makes all calls worthless.
"""

from fractions import Fraction as Q
from typing import NamedTuple

THINK = "<think> Two seats to Naxos, she said. </think>\n"
BETA_ACCURACY, BETA_FORMAT = 3, 1


def calls(*lines: str, thought: str = THINK) -> str:
    """An answer that calls."""
    return thought + "<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


def says(text: str) -> str:
    """An answer that talks."""
    return f"{THINK}<response> {text} </response>"


FERRY = '{"name": "find_ferry", "parameters": {"to": "Naxos", "seats": 2}}'
ONE = calls(FERRY)  # 1 + 1 * (1 + 2) = 4 points
LAMP = calls('{"name": "set_lamp", "parameters": {"on": true}}')  # 3 points
RING, WAIT = '{"name": "ring", "parameters": {"times": 1}}', '{"name": "wait", "parameters": {}}'
TWO = calls(RING, WAIT)  # 1 + (1 + 1) + (1 + 0) = 4 points
CAFE = calls('{"name": "größe", "parameters": {"текст": "日本 🚲 caf\u00e9"}}')  # 3 points
TALK = says("The boat is full.")
MOVES = calls('{"name": "move", "parameters": {"x": 1, "y": 2}}', '{"name": "move", "parameters": {"x": 1, "y": 3}}')


class Case(NamedTuple):
    """Format (0 or 1) and accuracy of an answer, of the paper and of the published code; None: it judges no calls."""

    truth: str
    answer: str
    paper: tuple[int, Q]
    reference: tuple[int, Q | None]


def same(truth: str, answer: str, form: int, accuracy: Q) -> Case:
    """Both judge it alike."""
    return Case(truth, answer, (form, accuracy), (form, accuracy))


NONE, ALL = Q(0), Q(1)
CASES = {
    "as wanted": same(ONE, ONE, 1, ALL),
    "another order, other spaces": same(
        ONE, calls('{"parameters":{"seats":2,"to":"Naxos"},"name":"find_ferry"}'), 1, ALL
    ),
    # 1 name, 1 names of parameters, 1 of 2 values
    "a wrong value": same(ONE, ONE.replace("2}", "3}"), 1, Q(1 + 1 + 1, 4)),
    # 1, 1/2, 1
    "a parameter is missing": same(ONE, ONE.replace(', "seats": 2', ""), 1, (1 + Q(1, 2) + 1) / 4),
    # 1, 2/3, 2
    "a parameter too many": same(ONE, ONE.replace("2}", '2, "deck": "upper"}'), 1, (1 + Q(2, 3) + 2) / 4),
    "another tool": same(ONE, ONE.replace("find_ferry", "find_train"), 1, NONE),
    "a capital in the name": same(ONE, ONE.replace("find_ferry", "Find_ferry"), 1, NONE),
    # Names 1/2; of the paper two calls for one double the rest of the denominator: 1 + 2 * 3.
    "the call twice": Case(ONE, calls(FERRY, FERRY), (1, (Q(1, 2) + 3) / 7), (1, (Q(1, 2) + 3) / 4)),
    "cut in the middle": same(ONE, ONE[: ONE.index("Nax") + 3], 0, NONE),
    "no thought": same(ONE, calls(FERRY, thought=""), 0, ALL),
    "words before": Case(ONE, f"Sure!\n{ONE}", (0, ALL), (1, ALL)),
    "a response that nobody wants": same(ONE, f"{ONE}\n<response> Here. </response>", 0, ALL),
    "single quotes": Case(ONE, ONE.replace('"', "'"), (0, NONE), (1, NONE)),
    "on several lines": Case(ONE, ONE.replace(', "par', ',\n "par'), (0, ALL), (1, NONE)),
    "a word among the calls": Case(ONE, calls("call:", FERRY), (0, ALL), (1, NONE)),
    "arguments": Case(ONE, ONE.replace("parameters", "arguments"), (1, ALL), (1, NONE)),
    "the same key twice": Case(ONE, ONE.replace('"to"', '"to": "Paros", "to"'), (0, NONE), (1, ALL)),
    "NaN": Case(ONE, ONE.replace("2}", "NaN}"), (0, NONE), (1, Q(3, 4))),
    "2.0 for 2": Case(ONE, ONE.replace("2}", "2.0}"), (1, Q(3, 4)), (1, ALL)),
    "1 for true": Case(LAMP, LAMP.replace("true", "1"), (1, Q(2, 3)), (1, ALL)),
    "the tag named in the thought": Case(ONE, ONE.replace("Two", "<tool_call>"), (1, ALL), (0, NONE)),
    "nothing": same(ONE, "", 0, NONE),
    "brackets without end": same(ONE, "[" * 3000, 0, NONE),
    "escaped letters": same(
        CAFE,
        calls(r'{"name": "gr\u00f6\u00dfe", "parameters": {"\u0442екст": "\u65e5本 \ud83d\udeb2 caf\u00e9"}}'),
        1,
        ALL,
    ),
    "e and an accent for é": same(CAFE, CAFE.replace("\u00e9", "e\u0301"), 1, Q(2, 3)),
    "two in another order": same(TWO, calls(WAIT, RING), 1, ALL),
    # Names 1/2; the first call's 2.
    "one of two": same(TWO, calls(RING), 1, (Q(1, 2) + 2) / 4),
    # Best: (1,2)-(5,2) for 2 and (1,3)-(1,3) for 3. Greedy: (1,2) takes (1,3), the first that earns 2; 1 is left.
    "pairs that greed misses": Case(
        MOVES,
        calls('{"name": "move", "parameters": {"x": 1, "y": 3}}', '{"name": "move", "parameters": {"x": 5, "y": 2}}'),
        (1, Q(1 + 2 + 3, 7)),
        (1, Q(1 + 2 + 1, 7)),
    ),
    "another response": Case(TALK, says("Nothing left."), (1, ALL), (1, None)),
    "a call in place of a response": Case(TALK, ONE, (0, NONE), (0, None)),
    "a thought without an end": Case(TALK, "<think> full, is it", (0, NONE), (0, None)),
    "an empty response": Case(TALK, says("").replace("  ", ""), (0, NONE), (1, None)),
}


def rows() -> list[dict]:
    """A row per answer, with [format, correctness] under preset@progress, or @step in preset reference."""
    return [
        {"name": name, "ground_truth": case.truth, "response": case.answer, "scores": _scores(case)}
        for name, case in CASES.items()
    ]


def _scores(case: Case) -> dict[str, list[float]]:
    form, accuracy = case.paper
    scores = {}
    for nu in (Q(0), Q(1, 4), Q(1)):
        correctness = (2 + nu) * (2 * (accuracy if form else accuracy / 2) - 1)
        scores[f"paper@{float(nu)}"] = [(2 - nu) * form, correctness]
        scores[f"poster@{float(nu)}"] = [BETA_FORMAT * form * nu, BETA_ACCURACY * accuracy * (1 - nu)]
    for step in (0, 75, 150, 400):
        done = Q(step, 150)
        wrong, right = min(Q(-1), 2 * done - 2), max(Q(1), 2 - done)
        scores[f"reference@{step}"] = _published(case, wrong, right, min(Q(3), 2 + done))
    scores["reference, no ramp@0"] = _published(case, Q(0), Q(1), Q(3))
    return {name: [float(value) for value in pair] for name, pair in scores.items()}


def _published(case: Case, wrong: Q, right: Q, worth: Q) -> list[Q]:
    form, accuracy = case.reference
    return [right if form else wrong, Q(0) if accuracy is None else worth * (2 * accuracy - 1)]
