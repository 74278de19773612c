"""Token weights: the paper's rules over measured entropies, and the published code's constants; see `files`.

The paper's, in the order format, tool name, parameters, cot: the mean of a statistic over each region's tokens; the
rule; divided by the mean over the regions that are there; held in 0.3 .. 2; the curriculum of Eq. 16-17; and each
answer divided by its own mean + 1e-8.
"""

import math

F, N, P, C = range(4)
FLOOR, DELTA = 1e-6, 1e-8
LOW, HIGH = 0.3, 2.0  # of the clamp, and of the curriculum
SLOPE = 0.3
# Two answers each: regions, entropies in nats, collisions sum_v p_v^2.
BATCHES = {
    "all regions": {
        "regions": [[F, C, C, F, F, N, F, P, P, F], [F, C, F, F]],
        "entropy": [[0.01, 1.2, 0.7, 0.02, 0.05, 0.3, 0.02, 0.9, 0.4, 0.03], [0.04, 2.1, 0.01, 0.02]],
        "collision": [[0.99, 0.4, 0.6, 0.98, 0.97, 0.8, 0.99, 0.5, 0.7, 0.98], [0.97, 0.2, 0.99, 0.98]],
    },
    "no call": {
        "regions": [[F, C, C, C, F], [F, C, F]],
        "entropy": [[0.2, 0.9, 1.1, 0.3, 0.1], [0.3, 1.6, 0.4]],
        "collision": [[0.85, 0.5, 0.4, 0.8, 0.9], [0.8, 0.3, 0.7]],
    },
    "a policy that is sure": {
        "regions": [[F, N, P, C], [F, C]],
        "entropy": [[0.0, 0.5, 0.0, 1.0], [0.0, 1.0]],
        "collision": [[1.0, 0.6, 1.0, 0.4], [1.0, 0.4]],
    },
}
RULES = {
    "score_bound": ("entropy", lambda h: -1 / math.expm1(-h)),
    "inverse_entropy": ("entropy", lambda h: 1 / h),
    "collision": ("collision", lambda c: 1 / c),
    "constant": ("entropy", lambda h: 1.0),
}
# An answer of the published code's kind, in its tokens, with the weight of each: t a tag, c thought, n name,
# p parameters, "-" nothing. A span of several tokens leaves out its last one, and only the first call counts.
ANSWERS = {
    "a call": [
        *(("<think>", "t"), ("Ask ", "c"), ("the café", "-"), ("</think>", "t"), ("\n", "-"), ("<tool_call>", "t")),
        *(("\n", "-"), ('{"name": "', "-"), ("find", "n"), ("_ferry", "-"), ('", "parameters": ', "-")),
        *(('{"to": ', "p"), ('"日', "p"), ('本"', "p"), ("}", "-"), ("}\n", "-"), ("</tool_call>", "t")),
        ("<|im_end|>", "-"),
    ],
    "a response": [
        *(("<think>", "t"), ("done", "c"), ("</think>", "t"), ("\n", "-"), ("<response>", "t"), ("It left.", "-")),
        ("</response>", "t"),
    ],
    "two calls": [
        *(("<tool_call>", "t"), ('{"name": "', "-"), ("a", "n"), ('", "arguments": ', "-"), ('{"x"', "p"), (":1", "p")),
        *(("}", "-"), ("}\n", "-"), ('{"name": "', "-"), ("b", "-"), ('", "arguments": ', "-"), ('{"y":2}', "-")),
        *(("}", "-"), ("</tool_call>", "t")),
    ],
    "a thought without an end": [("<think>", "-"), ("hm", "-"), ("<tool_call>", "-")],
}
STEPS = (0, 100, 900)


def rows() -> list[dict]:
    """One row per batch, rule and progress; then one per answer and step."""
    made = []
    for name, batch in BATCHES.items():
        for rule in RULES:
            for progress in (0.0, 0.5, 1.0):
                row = {"kind": "paper", "name": name, **batch, "rule": rule, "progress": progress}
                made.append(row | {"expected": _weights(batch, rule, progress)})
    for name, answer in ANSWERS.items():
        for step in STEPS:
            row = {"kind": "reference", "name": name, "pieces": [piece for piece, _ in answer], "step": step}
            made.append(row | {"expected": _published([kind for _, kind in answer], step)})
    return made


def _weights(batch: dict, rule: str, progress: float) -> list[list[float]]:
    statistic, formula = RULES[rule]
    found: dict[int, list[float]] = {}
    for regions, values in zip(batch["regions"], batch[statistic], strict=True):
        for region, value in zip(regions, values, strict=True):
            # The score's expected square is 1 - c.
            found.setdefault(region, []).append(1 - value if statistic == "collision" else value)
    raw = {region: formula(max(FLOOR, sum(values) / len(values))) for region, values in found.items()}
    mean = sum(raw.values()) / len(raw)
    weight = {region: min(HIGH, max(LOW, raw[region] / mean)) if region in raw else 1.0 for region in (F, N, P, C)}
    weight[F] = max(LOW, weight[F] - SLOPE * progress)
    for region in (P, C):
        weight[region] = min(HIGH, weight[region] + SLOPE * progress)
    answers = [[weight[region] for region in regions] for regions in batch["regions"]]
    return [[w / (sum(answer) / len(answer) + DELTA) for w in answer] for answer in answers]


def _published(kinds: list[str], step: int) -> list[float]:
    rising = 0.6 + 0.002 * step
    worth = {"t": 1.0, "c": min(1.0, rising), "n": 1.2, "p": min(1.2, rising), "-": 0.0}
    raw = [worth[kind] for kind in kinds]
    positive = [weight for weight in raw if weight > 0]
    return [weight / (sum(positive) / len(positive)) if weight else 0.0 for weight in raw]
