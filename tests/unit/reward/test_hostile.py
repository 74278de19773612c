"""Answers made to cost time or to break a scorer."""

import json
import random
import time

import pytest

from rest_megatron.config import load
from rest_megatron.reward.paper import parse_ground_truth, score
from rest_megatron.reward.presets import build_reward
from tests.unit.reward.written import THOUGHT, calls, line


def hostile_calls(number: int = 64, names: int = 100) -> dict[str, str]:
    """The most that 64 KiB and 64 calls of one name can make a scorer do."""
    keys = [f"{i:02x}" for i in range(names)]
    rng = random.Random(0)
    made = {
        "staircase": [{key: int(i < row) for i, key in enumerate(keys)} for row in range(number)],
        "random": [{key: rng.randrange(2) for key in rng.sample(keys, names // 2)} for _ in range(number)],
        "all different": [{f"{row:02x}{key}": row for key in keys} for row in range(number)],
        "long values": [{"x": [1] * 400 + [row]} for row in range(number)],
        "all equal": [dict.fromkeys(keys, 0)] * number,
    }
    compact = {"separators": (",", ":")}
    return {
        name: calls(*(json.dumps({"name": "f", "parameters": p}, **compact) for p in group))
        for name, group in made.items()
    }


HOSTILE = hostile_calls()


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("answer", HOSTILE)
@pytest.mark.parametrize("truth", HOSTILE)
def test_hostile_answers_to_hostile_ground_truths_are_scored_in_milliseconds(truth, answer, preset):
    reward = build_reward(load([], [f"reward.preset={preset}"]))
    wanted, made = reward.read(HOSTILE[truth]), HOSTILE[answer].encode()
    assert len(made) < 64 * 1024
    times = []
    for _ in range(3):
        start = time.process_time()
        reward.score(made, wanted, progress=0.0, step=0)
        times.append(time.process_time() - start)
    # 10 to 27 ms on an idle core; the limit leaves room for a slow one.
    assert min(times) < 0.25


def test_any_bytes_give_a_score():
    rng = random.Random(0)
    call, response = calls(line("f", x=1)), "<response> Hi. </response>"
    wanted = (call, THOUGHT + response, f"{call}\n{response}", calls(*[line("f", x=i) for i in range(5)]))
    truths = [parse_ground_truth(text) for text in wanted]
    tokens = [b"<think> t </think>\n", b"<tool_call>\n", b"\n</tool_call>", b"<response>", b"</response>", b"\n", b"}"]
    tokens += [line("f", x=1).encode(), line("f", x=2).encode(), b'{"name": "f", "parameters": {"x": NaN}}', b"\xff"]
    for number in range(4000):
        if number % 2:
            text = rng.randbytes(rng.randrange(100))
        else:
            text = b"".join(rng.choice(tokens) for _ in range(rng.randrange(12)))
        result = score(text, rng.choice(truths), progress=1.0)
        assert -3.0 <= result.total <= 4.0
        assert result.total == result.format + result.correctness
        assert (result.total == 4.0) == (result.reason == "ok")
