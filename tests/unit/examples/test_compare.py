"""The comparison of methods: intervals, curves at equal numbers of answers, and the table."""

import json
import sys

import numpy as np
import pytest

from tests.paths import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "compare"))

import arms
import summarize

TRUTH = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize("runs, t", [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (30, 2.0452)])
def test_the_interval_is_that_of_the_printed_tables_of_t(runs, t):
    values = np.arange(runs) ** 1.5
    assert summarize.interval(values) == pytest.approx(t * values.std(ddof=1) / runs**0.5, rel=3e-5)


def test_a_curve_is_read_at_equal_numbers_of_answers():
    curve = summarize.Curve(np.array([0.0, 100.0, 300.0]), {"exact": np.array([0.0, 0.5, 0.9])})
    assert curve.final("exact", 200.0) == pytest.approx(0.7)
    # Mean of 0 -> .5 over the first half, .5 -> .7 over the second.
    assert curve.area("exact", 200.0) == pytest.approx((0.25 + 0.6) / 2)


def test_every_arm_names_configurations_that_exist_and_load():
    from rest_megatron.config import load
    from rest_megatron.config.check import check_settings

    for name, files in arms.ARMS.items():
        paths = [EXAMPLES / "compare/task.yaml", *(EXAMPLES / file for file in files)]
        check_settings(load(paths, ["data.eval=x"])), name
    assert len({arms.directory(name, 0) for name in arms.ARMS}) == len(arms.ARMS)


def test_the_table_pairs_runs_of_a_seed_and_scores_all_arms_alike(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    row = {"reward_model": {"ground_truth": TRUTH}}
    (tmp_path / "data/heldout.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    for name in arms.ARMS:
        for seed in range(3):
            run = tmp_path / arms.directory(name, seed)
            (run / "rollouts").mkdir(parents=True)
            (run / "hf").mkdir()
            (run / "metrics.jsonl").write_text('{"step": 1, "rollout/answers": 8}\n{"step": 2, "rollout/answers": 8}\n')
            right = 1 + (name != arms.BASELINE)
            for step, count in ((0, 0), (2, right)):
                texts = [TRUTH] * count + ["no"] * (2 - count)
                rows = [{"prompt": i, "text": text, "score": 99.0} for i, text in enumerate(texts)]
                (run / f"rollouts/eval-{step}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(sys, "argv", ["summarize.py", "--out", str(tmp_path)])
    summarize.main()
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["seeds"] == [0, 1, 2] and result["answers"] == 16
    best = next(own for own in result["arms"] if own["arm"] == "ResT (paper)")
    assert best["exact_final"]["mean"] == 1.0 and best["exact_final"]["difference"] == 0.5
    assert best["exact_final"]["interval"] == 0.0 and best["total_final"]["mean"] == 4.0
    assert "| GRPO | 0.500 ± 0.000 |" in (tmp_path / "comparison.md").read_text()
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
