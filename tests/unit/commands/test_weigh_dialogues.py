"""`weigh` on the rows of dialogues: sampled tokens are weighed turn by turn, as in training; what tools said is not."""

import statistics
from functools import partial

import pytest

from rest_megatron.method.reference_weights import reference_weights
from tests.unit.commands.weighing import ANSWER, REGIONS, encoder, save_byte_tokenizer, weigh_rows

HEARD = "\n<think>a tool</think>\n"
NOTHING = [None] * len(HEARD)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    return save_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encode(tokenizer_dir):
    return encoder(tokenizer_dir)


@pytest.fixture
def run(tmp_path, tokenizer_dir):
    """`run(rows, *overrides, **file arguments)` -> (output rows, what was reported)."""
    return partial(weigh_rows, tmp_path, tokenizer_dir)


@pytest.fixture
def dialogue(encode):
    """Two turns that are alike, what a tool said between them."""
    turn, heard = [*encode(ANSWER), 256], encode(HEARD)
    mask = [True] * len(turn) + [False] * len(heard) + [True] * len(turn)
    return {"ids": [*turn, *heard, *turn], "response_mask": mask}


def twice(values):
    return [*values, *NOTHING, *values]


@pytest.mark.parametrize("scope", ["batch", "response"])
def test_sampled_tokens_weigh_as_in_an_answer_without_what_tools_said(run, encode, dialogue, scope):
    ids = [*encode(ANSWER), 256]
    entropy = [0.1 + 0.01 * i for i in range(len(ids))]
    overrides = ["weights.rule=inverse_entropy", f"weights.scope={scope}"]
    (alone,), _ = run([{"ids": ids, "entropy": entropy}], *overrides, progress=0.5)
    (row,), report = run([{**dialogue, "entropy": twice(entropy)}], *overrides, progress=0.5)
    assert row["regions"] == twice([*REGIONS, "format"])
    assert [w for w in row["weights"] if w is not None] == pytest.approx(alone["weights"] * 2)
    assert row["weights"] == twice(row["weights"][: len(ids)])
    assert row["entropy"] == twice(entropy) and row["response_mask"] == dialogue["response_mask"]
    assert report.endswith(": 1 row\n")


def test_the_bonus_of_tao_rl_is_for_turns_after_a_tool_s_result(run, encode, dialogue):
    entropy = [0.1 + 0.01 * i for i in range(len(encode(ANSWER)) + 1)]
    deviation = statistics.pstdev(entropy)
    overrides = ["method.preset=grpo", "weights.rule=tao_rl", "weights.entropy_slope=0.2"]
    (row,), _ = run([{**dialogue, "entropy": twice(entropy)}], *overrides)
    later = [1 + 0.2 * (h - statistics.fmean(entropy)) / deviation for h in entropy]
    sampled = [weight for weight in row["weights"] if weight is not None]
    assert sampled == pytest.approx([*[1.0] * len(entropy), *later], rel=1e-4)


def test_the_reference_rule_weighs_each_turn_by_itself(run, dialogue):
    (row,), _ = run([dialogue], "weights.preset=reference", step=100)
    turn = [bytes([byte]) for byte in ANSWER.encode()] + [b"<|im_end|>"]
    assert row["weights"] == twice(reference_weights(turn, step=100))


def test_padding_of_a_turn_weighs_nothing(run, dialogue):
    (alone,), _ = run([dialogue])
    padded = {"ids": [*dialogue["ids"], 65, 66], "response_mask": [*dialogue["response_mask"], True, True]}
    (row,), _ = run([padded])
    assert row["weights"] == [*alone["weights"], 0.0, 0.0]
    assert row["regions"] == [*alone["regions"], "format", "format"]


def test_a_thought_that_is_open_when_a_turn_begins_is_a_thought(run, encode):
    first, heard, second = [*encode("hm</think>"), 256], encode("\n<think>\n"), encode("so</think>")
    mask = [True] * len(first) + [False] * len(heard) + [True] * len(second)
    row = {"ids": [*first, *heard, *second], "response_mask": mask, "think_open": True}
    (written,), _ = run([row])
    assert written["regions"][:2] == ["cot", "cot"]
    assert written["regions"][len(first) + len(heard) :][:3] == ["cot", "cot", "format"]


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"response_mask": [True]}, "'response_mask' has 1 entries for"),
        ({"response_mask": 1}, "'response_mask' is int 1"),
        ({"entropy": twice([None] * (len(REGIONS) + 1))}, r"entropy[0] is NoneType None, must be a number"),
    ],
)
def test_a_mask_or_statistic_that_does_not_fit_is_reported(run, dialogue, fields, reason):
    _, row = run([dialogue, dialogue | fields])[0]
    assert reason in row["error"]
