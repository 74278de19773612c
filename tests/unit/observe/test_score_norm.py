"""What the profile shows of true score norms."""

import json
import math

import pytest

from rest_megatron.config.method import WeightsConfig
from rest_megatron.observe.profile import profile_table, write_profile
from rest_megatron.observe.score_norm import norm_tables, summary
from tests.unit.observe.profiles import PROFILE

HOSTILE = '<script>alert(1)</script>"\x1b[31m'


def token(region: str, norm: float, entropy: float, collision: float, **more) -> dict:
    return {
        "region": region,
        "norm": norm,
        "error": 0.1,
        "sampled": norm / 2,
        "ends": 0.5,
        "passes": 4,
        "probability": 0.9,
        "entropy": entropy,
        "collision": collision,
        "hidden_norm_squared": 2.0,
        "before": "a",
        "token": "b",
        "after": "c",
    } | more


TOKENS = [
    token("format", 1.0, 0.1, 0.98),
    token("format", 3.0, 0.2, 0.9),
    token("parameters", 40.0, 0.5, 0.8),
    token("parameters", 20.0, 0.3, 0.9, token=HOSTILE.replace("\x1b", "")),
]
MEASURED = summary(TOKENS, [0.6, 0.0, 0.4, 0.0], WeightsConfig())


def test_regions_have_their_means_and_all_counts_each_by_its_share_of_all_tokens():
    regions = MEASURED["regions"]
    assert list(regions) == ["format", "parameters", "all"] and MEASURED["passes"] == 16
    assert regions["format"]["norm"] == 2.0 and regions["format"]["norm_error"] == pytest.approx(1.0)
    assert regions["all"]["norm"] == pytest.approx(0.6 * 2 + 0.4 * 30)
    assert regions["all"]["norm_error"] == pytest.approx(math.hypot(0.6 * 1, 0.4 * 10))
    assert regions["parameters"]["factor"] == pytest.approx(30 / 0.15)
    assert regions["format"]["bound"] == pytest.approx((1 - math.exp(-0.1) + 1 - math.exp(-0.2)) / 2)
    assert regions["format"]["lm_head"] == pytest.approx((0.02 + 0.1) / 2 * 2.0)
    assert regions["all"]["spearman"]["collision"] == pytest.approx(0.9486833)  # ranks 1 2.5 4 2.5 of 1 2 4 3


def test_weights_are_theorem_2_s_and_the_truth_s_own_leave_least_variance():
    weights = MEASURED["weights"]
    assert weights["norm"]["format"] / weights["norm"]["parameters"] == pytest.approx(15.0)
    assert weights["norm"]["variance"] == min(own["variance"] for own in weights.values()) < 1
    assert weights["norm"]["clamped"]["parameters"] == 0.3


def test_page_and_terminal_show_norms_and_escape_what_a_model_wrote(tmp_path):
    profile = PROFILE | {"score_norm": MEASURED}
    text = profile_table(profile)
    assert "True score norm of 4 tokens, by 16 backward passes" in text and "weights from" in text
    page = write_profile(tmp_path, profile).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert json.loads((tmp_path / "profile.json").read_text())["score_norm"]["regions"]["all"]["tokens"] == 4
    assert [len(table[1]) for table in norm_tables(MEASURED)] == [3, 4, 5, 4]
