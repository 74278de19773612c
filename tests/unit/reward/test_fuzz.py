"""Every preset's reward is a total function: damaged answers by the thousand, none of which raises."""

import json
import random
from collections import Counter

import pytest

from rest_megatron.config import load
from rest_megatron.reward.presets import build_reward

CASES = 10_000
THOUGHT = "<think> I should use the tool. </think>\n"
CALLS = [
    {"name": "get_weather", "parameters": {"city": "Oslo", "days": 3, "units": ["C", "mm"], "exact": True}},
    {"name": "get_weather", "parameters": {"city": "Łódź", "days": 3.0, "units": [], "exact": None}},
    {"name": "Search Nearby", "parameters": {"query": {"lat": 22.5431, "lng": "114.0579"}, "": -0}},
    {"name": "noop", "parameters": {}},
]
TRUTHS = [
    THOUGHT + "<tool_call>\n" + "\n".join(map(json.dumps, CALLS[:count])) + "\n</tool_call>" for count in (1, 2, 4)
]
TRUTHS += [THOUGHT + "<response> Fine. </response>", TRUTHS[0] + "\n<response> Fine. </response>"]

PIECES = [
    b"<think>", b"</think>", b"<tool_call>", b"</tool_call>", b"<response>", b"</response>", b"<obs>", b"<think", b"</",
    b"<|im_start|>assistant", b"<|im_start|>", b"<|im_end|>", b"\n", b" ", b"\r\n", b"\xe2\x80\xae", b"\xef\xbb\xbf",
    b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b'"name": ', b'"parameters": ', b'"arguments": ', b"null", b"true",
    b"NaN", b"-Infinity", b"1e999", b"-0.0", b"1e-400", b"9" * 5000, b"\\ud800", b"\\u0000", b"\xff", b"\x00",
    b"\xed\xa0\x80", b"\xf0\x9f\x92\xa9", b"[" * 2000, b'{"a":' * 700, b"<think>" * 500, b'"a":1,' * 300,
    *(json.dumps(call).encode() for call in CALLS),
]  # fmt: skip


def fuzzed(rng: random.Random, truth: str) -> bytes:
    """A damaged answer: the wanted one with edits, a pile of pieces, or random bytes."""
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind <= 3:
        return b"".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 30)))
    text = bytearray(truth.encode())
    for _ in range(rng.randrange(4)):
        a = rng.randrange(len(text) + 1)
        b = min(len(text), a + rng.randrange(20))
        edits = (bytes(text[a:b]) * 2, b"", rng.choice(PIECES), rng.randbytes(2), bytes(text[b:a:-1]))
        text[a:b] = rng.choice(edits)
    return bytes(text[: rng.randrange(len(text) + 1)] if rng.random() < 0.2 else text)


SETTINGS = {
    "paper": (),
    "paper without ramp": ("reward.ramp=none",),
    "paper, hermes": ("data.answer_format=hermes",),
    "paper, llama3": ("data.answer_format=llama3",),
    "poster": ("reward.preset=poster",),
    "reference": ("reward.preset=reference",),
    "reference, refined": ("reward.preset=reference", "reward.reference_variant=refined"),
    "reference, intermediate": ("reward.preset=reference", "reward.reference_variant=intermediate"),
}


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
def test_any_bytes_have_a_score(overrides):
    reward = build_reward(load([], overrides))
    truths = [reward.read(text) for text in TRUTHS]
    rng = random.Random(0)
    reasons = Counter()
    for number in range(CASES):
        progress, index = rng.random(), rng.randrange(len(truths))
        answer = fuzzed(rng, TRUTHS[index])
        result = reward.score(answer, truths[index], progress=progress, step=int(150 * progress))
        assert result.total == result.format + result.correctness
        assert -5.0 <= result.total <= 4.0 + 1e-9
        assert set(result.parts) == {"format", "name", "parameter_names", "parameter_values", "exact"}
        assert all(0.0 <= part <= 1.0 for part in result.parts.values())
        assert (result.reason == "ok") == (min(result.parts.values()) == 1.0), (number, answer)
        reasons[result.reason] += 1
    assert len(reasons) >= 6 and 0 < reasons["ok"] < CASES / 2  # the damage is neither all the same nor all fatal


@pytest.mark.parametrize("preset", ["paper", "reference", "poster"])
def test_a_score_depends_on_nothing_but_its_arguments(preset):
    """Scored again, in another order and by another instance, every answer gets the same."""
    rng = random.Random(1)
    answers = [fuzzed(rng, TRUTHS[i % len(TRUTHS)]) for i in range(300)]

    def score_all(order: list[int]) -> dict[int, object]:
        reward = build_reward(load([], [f"reward.preset={preset}"]))
        truths = [reward.read(text) for text in TRUTHS]
        return {i: reward.score(answers[i], truths[i % len(truths)], progress=0.5, step=50) for i in order}

    order = list(range(len(answers)))
    assert score_all(order) == score_all(order[::-1])
