"""The rows of a dump, and where they are written."""

import json
from pathlib import Path

import pytest
import torch

from rest_megatron.observe.response import read_response
from rest_megatron.step.dump import dump_evaluation, dump_rollouts, prompt_hash
from rest_megatron.types import Experience, Prompt, Sample, Score

TABLE = [bytes([i]) for i in range(256)] + [b"<|im_end|>"]
PROMPTS = [Prompt(n, ({"role": "user", "content": "?"},), "truth", (7, 8, 9 + n)) for n in (0, 4)]
STOPPED = Sample((7, 8, 9), (65, 66, 256), (-0.5, -0.25, -0.125), "stop", 3)
DIALOGUE = Sample((7, 8, 13), (68, 66, 256), (-0.5, 0.0, -0.125), "length", 2, (True, False, True))
SCORE = Score(1.5, 0.5, 1.0, {"format": 0.5, "mine": 1.0}, "ok")
EXPERIENCE = Experience(
    prompts=PROMPTS,
    groups=[[STOPPED, STOPPED], [DIALOGUE, DIALOGUE]],
    scores=[[SCORE, SCORE]] * 2,
    advantages=torch.arange(4.0).view(2, 2),
    num_trained=1,
    rounds=3,
    seconds=1.0,
    reward_seconds=0.5,
)
REGIONS = {"regions": [0, 3], "entropy": [0.5, 1.5], "weights": [1.25, 0.75]}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dumped(run_dir: Path, vectors: dict) -> list[dict]:
    dump_rollouts(run_dir, 7, EXPERIENCE, TABLE, vectors)
    return rows_of(run_dir / "rollouts" / "step-7.jsonl")


def test_a_row_holds_the_prompt_the_answer_its_score_and_its_part_in_the_step(tmp_path):
    assert dumped(tmp_path, {})[1] == {
        "prompt": 0,
        "prompt_tokens": 3,
        "prompt_hash": prompt_hash((7, 8, 9)),
        "think_open": False,
        "ids": [65, 66, 256],
        "log_probs": [-0.5, -0.25, -0.125],
        "text": "AB",
        "finish_reason": "stop",
        "weight_version": 3,
        "score": 1.5,
        "format": 0.5,
        "correctness": 1.0,
        "parts": {"format": 0.5, "mine": 1.0},
        "reason": "ok",
        "trained": True,
        "rounds": 3,
        "advantage": 1.0,
    }


def test_rows_come_prompt_after_prompt_and_say_which_answers_were_trained_on(tmp_path):
    rows = dumped(tmp_path, {})
    assert [(row["prompt"], row["trained"], row["advantage"]) for row in rows] == [
        (0, True, 0.0),
        (0, True, 1.0),
        (4, False, 2.0),
        (4, False, 3.0),
    ]


def test_only_an_answer_whose_values_are_known_has_them(tmp_path):
    rows = dumped(tmp_path, {1: {"regions": [0, 1, 3], "weights": [1.5, 1.0, 0.5]}})
    assert rows[1]["regions"] == ["format", "tool_name", "cot"] and rows[1]["weights"] == [1.5, 1.0, 0.5]
    assert ["regions" in row or "weights" in row for row in rows] == [False, True, False, False]


def test_values_of_tokens_stand_at_the_ids_that_were_sampled(tmp_path):
    rows = dumped(tmp_path, {2: REGIONS})
    row = rows[2]
    assert row["response_mask"] == [True, False, True] and "response_mask" not in rows[1]
    assert row["regions"] == ["format", None, "cot"] and row["weights"] == [1.25, None, 0.75]
    response = read_response(row, TABLE)
    assert (response.ids, response.regions, response.weights) == ([68, 256], ["format", "cot"], [1.25, 0.75])
    assert response.measures["entropy"] == [0.5, 1.5] and response.pieces == [b"D", b"<|im_end|>"]


def test_held_out_answers_have_a_file_of_their_own_and_no_part_in_a_step(tmp_path):
    dump_evaluation(tmp_path, 50, PROMPTS, [[STOPPED], [DIALOGUE]], [[SCORE], [SCORE]], TABLE)
    rows = rows_of(tmp_path / "rollouts" / "eval-50.jsonl")
    assert [(row["prompt"], row["text"], row["score"]) for row in rows] == [(0, "AB", 1.5), (4, "DB<|im_end|>", 1.5)]
    assert not {"trained", "rounds", "advantage"} & rows[0].keys()


def test_the_hash_is_of_the_ids_in_decimal():
    # printf '7 8 9' | sha256sum
    assert prompt_hash((7, 8, 9)) == "d79231146fc85c79"


@pytest.mark.parametrize("ids", [(78, 9), (7, 89), (8, 7, 9)])
def test_other_ids_have_another_hash(ids):
    assert prompt_hash(ids) != prompt_hash((7, 8, 9))
