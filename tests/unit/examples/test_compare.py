"""The comparison of methods: arms, seeds, summaries of runs, pairing, and the table."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.paths import EXAMPLES

sys.path.insert(0, str(EXAMPLES / "compare"))

import arms
import comparison
import programs
import run_arms
import runs
import summarize
import summary

TRUTH = '<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
PROMPTS = 4


def rows(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def run_of(seed, exact, answers=8, steps=2, final=0.5):
    measures = {name: np.full(steps, exact) for name in summary.MEASURES}
    return summary.Summary(seed, np.full(steps, answers), measures, {n: np.full(6, final) for n in summary.MEASURES})


@pytest.fixture
def data(tmp_path):
    """Prompts to train on and held-out ones, all with the same wanted answer."""
    for name in ("train", "heldout"):
        rows(tmp_path / f"data/{name}.jsonl", [{"reward_model": {"ground_truth": TRUTH}}] * PROMPTS)
    return tmp_path / "data"


def make_run(run, right, fresh=True):
    """What `train` and `rollout` leave: two steps of two answers, `right` of the second step's, held out two each."""
    mass = {"weight_mass/cot": 0.7, "weight_mass/format": 0.3}
    rows(run / "metrics.jsonl", [mass, {"weight_mass/cot": 0.6, "weight_mass/format": 0.4}])
    for step, count in ((1, 0), (2, right)):
        texts = [TRUTH] * count + ["no"] * (2 - count)
        prompt = step if fresh else 1
        rows(run / f"rollouts/step-{step}.jsonl", [{"prompt": prompt, "text": text, "score": 99.0} for text in texts])
    answers = [{"prompt": prompt, "text": text} for prompt in range(PROMPTS) for text in (TRUTH, "no")]
    rows(run / "evaluation/rollout.jsonl", answers)


@pytest.mark.parametrize("task", arms.TASKS)
@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arm_loads_and_meets_no_prompt_twice(task, arm):
    from rest_megatron.config import load
    from rest_megatron.config.check import check_settings

    config = load(arms.files(task, arm), [])
    check_settings(config)
    more = config.algorithm.max_refills if config.algorithm.zero_variance == "refill" else 0
    recipe = arms.TASKS[task].recipe
    assert int(recipe[recipe.index("--train") + 1]) >= config.train.steps * config.rollout.prompts_per_step * (1 + more)


def test_main_arms_come_first_and_no_two_runs_share_a_directory():
    assert list(arms.ARMS)[: len(arms.MAIN)] == list(arms.MAIN)
    places = {arms.directory(task, name, seed) for task in arms.TASKS for name in arms.ARMS for seed in (0, 1)}
    assert len(places) == 2 * len(arms.TASKS) * len(arms.ARMS)


def test_seeds_and_arms_are_read_from_words():
    assert run_arms.parse_seeds(["0-2", "5", "2"]) == [0, 1, 2, 5]
    assert run_arms.chosen_arms(["DAPO", "main"]) == [*arms.MAIN, "DAPO"]
    assert run_arms.chosen_arms(["all"]) == list(arms.ARMS)
    with pytest.raises(SystemExit, match="PPO is not an arm"):
        run_arms.chosen_arms(["PPO"])


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    with programs.locked(tmp_path / "a.lock", wait=False) as mine:
        with programs.locked(tmp_path / "a.lock", wait=False) as other:
            assert mine is not None and other is None
    with programs.locked(tmp_path / "a.lock", wait=False) as again:
        assert again is not None


def test_a_run_is_scored_anew_by_the_default_reward(tmp_path, data):
    make_run(tmp_path / "run", right=1)
    found = summary.summarize_run(tmp_path / "run", data)
    assert found["answers"] == [2, 2]
    # A perfect answer earns 4, one without any tag -3 at the end of the ramp.
    assert found["steps"] == {"exact": [0.0, 0.5], "reward": [-3.0, 0.5], "format": [0.0, 0.5]}
    assert found["final"]["exact"] == [0.5] * PROMPTS and found["final"]["reward"] == [0.5] * PROMPTS
    assert found["weight_mass"] == {"first": {"cot": 0.7, "format": 0.3}, "last": {"cot": 0.6, "format": 0.4}}


def test_a_run_that_meets_a_prompt_again_is_refused(tmp_path, data):
    make_run(tmp_path / "run", right=1, fresh=False)
    with pytest.raises(ValueError, match="step 2 met 1 prompts again"):
        summary.summarize_run(tmp_path / "run", data)


def test_a_finished_run_is_small_and_is_not_done_again(tmp_path, data, monkeypatch):
    run, started = tmp_path / arms.directory("quick", "ResT", 3), []
    (tmp_path / "quick").mkdir()
    data.rename(tmp_path / "quick/data")

    def train(home, task, arm, seed, lock):
        started.append((task, arm, seed))
        make_run(run, right=1)

    monkeypatch.setattr(runs, "train", train)
    monkeypatch.setattr(runs, "evaluate", lambda *_: None)
    with programs.locked(run.with_suffix(".lock"), wait=False):
        runs.do_run(tmp_path, "quick", "ResT", 3)
    assert started == []
    for _ in range(2):
        runs.do_run(tmp_path, "quick", "ResT", 3)
    assert started == [("quick", "ResT", 3)]
    assert {path.name for path in run.iterdir()} == {"metrics.jsonl", summary.SUMMARY}
    assert summary.read_summary(run / summary.SUMMARY).seed == 3


@pytest.fixture
def makes(tmp_path, monkeypatch):
    """Stand-ins for the programs of a start; `makes.right` of its answers are right. Counts the models made."""
    made = SimpleNamespace(right=1, models=0)

    def call(words, log, lock):
        rows(log.parent / "data/heldout.jsonl", [{"reward_model": {"ground_truth": TRUTH}}] * PROMPTS)

    def sft(command, files, overrides, log, lock):
        (log.parent / "sft/hf").mkdir(parents=True)
        made.models += 1

    def evaluate(home, task, model, run, seed, lock):
        assert model.exists()
        texts = [TRUTH] * made.right + ["no"] * (PROMPTS - made.right)
        rows(run / "evaluation/rollout.jsonl", [{"prompt": p, "text": text} for p, text in enumerate(texts)])

    for name, stand_in in (("call", call), ("rest_megatron", sft), ("evaluate", evaluate)):
        monkeypatch.setattr(runs, name, stand_in)
    return made


def test_a_start_is_made_once(tmp_path, makes):
    for _ in range(2):
        runs.prepare(tmp_path, "quick")
    assert makes.models == 1 and (tmp_path / "quick/sft/hf").exists()


@pytest.mark.parametrize("lost", ["data", "sft/hf"])
def test_what_a_start_lost_is_made_anew_if_it_comes_out_the_same(tmp_path, makes, lost):
    home = tmp_path / "quick"
    runs.prepare(tmp_path, "quick")
    before = (home / summary.START).read_bytes()
    shutil.rmtree(home / lost)
    makes.right = 2
    for _ in range(2):  # and again: what came out otherwise is not taken for the start
        with pytest.raises(programs.Failed, match=r"began from another checkpoint.*Use another --out"):
            runs.prepare(tmp_path, "quick")
    makes.right = 1
    for _ in range(2):
        runs.prepare(tmp_path, "quick")
    assert (home / "sft/hf").exists() and (home / "data/heldout.jsonl").exists()
    assert (home / summary.START).read_bytes() == before and makes.models == 4


def test_a_program_that_fails_names_its_output(tmp_path):
    with programs.locked(tmp_path / "a.lock", wait=True) as lock:
        with pytest.raises(programs.Failed, match=r"exit\(3\) ended with 3; see .*a\.log"):
            programs.call([sys.executable, "-c", "print('why'); exit(3)"], tmp_path / "a.log", lock)
    assert (tmp_path / "a.log").read_text() == "why\n"


def test_areas_end_where_the_shortest_run_does_and_count_answers():
    own = summary.Summary(0, np.array([10, 30]), {"exact": np.array([0.2, 0.6])}, {})
    assert own.area("exact", 40) == pytest.approx((10 * 0.2 + 30 * 0.6) / 40)
    assert own.area("exact", 20) == pytest.approx((10 * 0.2 + 10 * 0.6) / 20)
    assert comparison.answer_budget({"a": {0: run_of(0, 0.5, 8)}, "b": {0: run_of(0, 0.5, 20)}}) == 16.0


def test_differences_are_over_common_seeds_only():
    base = {0: run_of(0, 0.5), 1: run_of(1, 0.6), 2: run_of(2, 0.7)}
    own = {1: run_of(1, 0.62), 2: run_of(2, 0.74), 7: run_of(7, 0.1)}
    row = comparison.arm_row({arms.BASELINE: base, "ResT": own}, "ResT", 16.0)
    found = row["outcomes"]["exact, over the run"]
    assert (row["paired_seeds"], found["n"], found["difference"]["n"]) == ([1, 2], 3, 2)
    assert found["difference"]["mean"] == pytest.approx(0.03)
    assert found["difference"]["sd"] == pytest.approx(0.02 / 2**0.5)
    assert found["difference"]["seeds_needed"] == 7
    assert row["by_prompt"]["exact"]["n"] == 6


def test_an_arm_differs_only_where_it_does_after_the_correction():
    base = {seed: run_of(seed, 0.5 + seed / 100) for seed in range(4)}
    wobble = (0.001, -0.001, 0.002, -0.002)

    def apart(gap):
        return {seed: run_of(seed, 0.5 + seed / 100 + gap + wobble[seed]) for seed in range(4)}

    # Two arms whose intervals exclude 0 if only just, p = .046, and one that differs whatever else is compared.
    runs = {arms.BASELINE: base, "ResT": apart(0.05), "DAPO": apart(0.003), "Dr.GRPO": apart(0.003)}
    result = comparison.compare(runs)
    cells = {row["arm"]: row["outcomes"]["exact, over the run"] for row in result["arms"]}
    assert "difference" not in cells[arms.BASELINE] and result["comparisons"] == 3
    assert cells["ResT"]["difference"]["differs"]
    for name in ("DAPO", "Dr.GRPO"):
        found = cells[name]["difference"]
        assert found["p"] < 0.05 and found["mean"] > found["half_width"] and not found["differs"]


def test_two_summaries_are_the_same_but_for_what_is_not_a_result():
    one = {"arm": "GRPO", "steps": {"exact": [0.5]}, "commit": "a", "seconds": {"train": 1}}
    assert summary.differences(one, {**one, "commit": "b", "seconds": {"train": 2}, "machine": "m"}) == []
    assert summary.differences(one, {**one, "steps": {"exact": [np.nextafter(0.5, 1)]}}) == ["steps"]


def test_the_page_shows_finished_runs_of_any_number(tmp_path, data, monkeypatch):
    home = tmp_path / "quick"
    final = {name: [0.25] * PROMPTS for name in summary.MEASURES}
    for name, seeds in ((arms.BASELINE, 3), ("ResT", 3), ("DAPO", 1)):
        for seed in range(seeds):
            run = tmp_path / arms.directory("quick", name, seed)
            make_run(run, right=1 + (name != arms.BASELINE))
            about = {"task": "quick", "arm": name, "seed": seed, "commit": "abc"}
            summary.write_json(run / summary.SUMMARY, about | summary.summarize_run(run, data))
    summary.write_json(home / summary.START, {"final": final})
    monkeypatch.setattr(sys, "argv", ["summarize.py", "--out", str(tmp_path)])
    summarize.main()
    result = json.loads((tmp_path / "comparison.json").read_text())
    assert result["commits"] == ["abc"] and result["tasks"]["quick"]["answers"] == 4
    best = next(row for row in result["tasks"]["quick"]["arms"] if row["arm"] == "ResT")
    assert best["outcomes"]["exact, over the run"]["difference"]["mean"] == 0.25
    page = (tmp_path / "comparison.md").read_text()
    assert "| GRPO | 3 | 4 | 0.250 ± 0.000 |" in page and "| DAPO | 1 | +0.250 |" in page
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
