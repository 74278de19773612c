"""Every preset scores our own answers as its formula says; no other data is needed."""

import pytest

from rest_megatron.config import load
from rest_megatron.reward.presets import build_reward
from tests.golden import files
from tests.golden.rewards import BETA_ACCURACY, BETA_FORMAT

OVERRIDES = {
    "paper": [],
    "poster": ["preset=poster", f"beta_accuracy={BETA_ACCURACY}", f"beta_format={BETA_FORMAT}"],
    "reference": ["preset=reference"],
    "reference, no ramp": ["preset=reference", "ramp=none"],
}
REWARDS = {name: build_reward(load([], [f"reward.{word}" for word in words])) for name, words in OVERRIDES.items()}
CASES = [
    pytest.param(case, where, id=f"{case['name']}-{where}")
    for case in files.read("rewards")
    for where in case["scores"]
]


@pytest.mark.parametrize("case, where", CASES)
def test_an_answer_of_our_own_scores_what_the_formula_says(case, where):
    preset, _, moment = where.partition("@")
    reward = REWARDS[preset]
    # The paper's presets follow progress, the published code the step.
    when = {"progress": 0.0, "step": int(moment)} if "reference" in preset else {"progress": float(moment), "step": 1}
    score = reward.score(case["response"].encode(), reward.read(case["ground_truth"]), **when)
    assert [score.format, score.correctness] == pytest.approx(case["scores"][where], abs=1e-11)
    assert score.total == pytest.approx(sum(case["scores"][where]), abs=1e-11)
