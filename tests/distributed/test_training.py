"""Whole training runs: every method of the examples gives the same numbers on TP 2 x PP 2 as on one process."""

import json

import pytest
from transformers import AutoTokenizer

from rest_megatron.cli import main
from tests.distributed.training_cases import calls_of, read_metrics, refused
from tests.distributed.training_runs import CUT, SETTINGS, run, same
from tests.paths import EXAMPLES
from tests.system.runs import make_run

# What these set is compared on every layout elsewhere: weights by test_method, test_dialogue and tests below. Rewards
# are rank 0's alone.
COMPARED_ELSEWHERE = (
    *("gtpo_like", "rsi_s", "tao_rl", "top_entropy"),
    *("moving_base", "collision", "measured", "published_weights", "published_code"),
    *("feedback_curriculum", "no_curriculum", "no_cot_gradient", "no_dynamic_reward"),
)
METHODS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in COMPARED_ELSEWHERE else [])
    for path in sorted([*(EXAMPLES / "baselines").glob("*.yaml"), *(EXAMPLES / "ablations").glob("*.yaml")])
]
SEQUENCE_PARALLEL = [*CUT, "parallel.sequence_parallel=true", "kernels.level=hidden"]
EXTRA = {"kl": ["algorithm.kl_coef=0.1"], "lm_head": ["weights.rule=lm_head"], "poster": ["reward.preset=poster"]}
MEASURED = ["weights.rule=measured", "weights.freeze_after=2", "weights.measure_every=1", "train.steps=4"]


@pytest.mark.parametrize("file", METHODS)
def test_a_method_of_the_examples_trains_alike_on_every_layout(pool, tmp_path, file):
    alone = read_metrics(run(pool, tmp_path / "one", 1, files=[file]))
    cut = read_metrics(run(pool, tmp_path / "cut", 4, files=[file], overrides=CUT))
    same(cut, alone)
    assert all(row["actor/grad_norm"] > 0 for row in alone)
    assert alone[1]["gradient_variance/weights/variance"] > 0


@pytest.mark.parametrize(
    "name", ["baselines/dapo", "baselines/gspo", "ablations/published_code", "ablations/no_cot_gradient"]
)
def test_a_method_trains_alike_on_three_data_parallel_ranks(pool, tmp_path, name):
    settings = ["train.epochs=2", "train.mini_batch_size=4", "train.steps=3", "rollout.prompts_per_step=3"]
    if name != "baselines/gspo":
        settings.append("algorithm.kl_coef=0.05")
    if name != "baselines/dapo":
        settings.append("algorithm.zero_variance=mask")
    files = [EXAMPLES / f"{name}.yaml"]
    alone = read_metrics(run(pool, tmp_path / "one", 1, files=files, overrides=settings))
    same(read_metrics(run(pool, tmp_path / "cut", 3, files=files, overrides=settings)), alone)
    one, cut = (
        [json.loads(line)["load/imbalance"] for line in (tmp_path / name / "run" / "metrics.jsonl").open()]
        for name in ("one", "cut")
    )
    assert one == [1.0] * 3 and all(1 < value <= 3 for value in cut)


@pytest.mark.parametrize("world_size, cut", [(1, []), (4, CUT)], ids=["one", "cut"])
def test_a_run_whose_updates_give_the_old_log_probs_trains_as_one_that_computes_them_before(
    pool, tmp_path, world_size, cut
):
    settings = ["train.gradient_variance_interval=0", "weights.freeze_after=1", "train.steps=3"]
    alone = read_metrics(run(pool, tmp_path / "before", 1, overrides=settings))
    own = ["algorithm.old_log_probs=update", *cut]
    rows = read_metrics(run(pool, tmp_path / "own", world_size, overrides=[*settings, *own]))
    same(rows, alone)
    # Until the base weights stand still there is a pass for them.
    assert all(row["actor/ratio"] == 1.0 for row in rows[1:])


@pytest.mark.parametrize("mode", ["mask", "refill"])
def test_a_step_in_which_no_group_teaches_anything_changes_nothing_and_the_run_goes_on(pool, tmp_path, mode):
    (tmp_path / "flat.py").write_text("def reward(response, ground_truth, *, progress, step):\n    return 1.0\n")
    settings = [f"reward.function={tmp_path}/flat.py:reward", f"algorithm.zero_variance={mode}"]
    rows = read_metrics(run(pool, tmp_path / "cut", 2, overrides=settings))
    assert [row["rollout/groups_trained"] for row in rows] == [0, 0]
    assert not any(name.startswith("actor/") for row in rows for name in row)


def test_the_learning_rate_follows_the_step_where_masked_groups_save_updates(pool, tmp_path):
    path = tmp_path / "rare.py"
    # The groups' answers differ in score from the third step on.
    path.write_text("def reward(response, ground_truth, *, progress, step):\n    return len(response) * (step > 2)\n")
    settings = [
        f"reward.function={path}:reward",
        "algorithm.zero_variance=mask",
        "train.steps=4",
        "optim.schedule=linear",
    ]
    rows = read_metrics(run(pool, tmp_path / "one", 1, overrides=settings))
    assert [row.get("actor/lr") for row in rows] == [None, None, pytest.approx(5e-4), pytest.approx(2.5e-4)]


def test_a_mini_batch_without_any_weight_takes_no_step_but_its_place_in_the_schedule(pool, tmp_path):
    # One answer a mini-batch. To the published code an unclosed thought weighs nothing: here the fifth and the eighth.
    settings = ["train.mini_batch_size=1", "optim.schedule=linear"]
    files = [EXAMPLES / "ablations/published_code.yaml"]
    rows = read_metrics(run(pool, tmp_path / "one", 1, files=files, overrides=settings))
    taken = ((0, 1, 2, 3, 5, 6), (8, 9, 10, 11, 13, 14))
    wanted = [1e-3 * (1 - sum(numbers) / 6 / 16) for numbers in taken]
    assert [row["actor/lr"] for row in rows] == pytest.approx(wanted)


def test_score_gives_a_dump_the_scores_it_was_trained_with(pool, tmp_path):
    run_dir = run(pool, tmp_path / "one", 1, overrides=["reward.overlong_buffer=0", "train.steps=3"])
    truths = [json.loads(line)["reward_model"]["ground_truth"] for line in (run_dir.parent / "rows.jsonl").open()]
    for step in (1, 3):
        dumped = [json.loads(line) for line in (run_dir / f"rollouts/step-{step}.jsonl").open()]
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(json.dumps({"response": r["text"], "ground_truth": truths[r["prompt"]]}) + "\n" for r in dumped)
        )
        assert main(["score", str(rows), f"{tmp_path}/out", f"--step={step}", "train.steps=3"], {}) == 0
        scored = [json.loads(line) for line in (tmp_path / "out").open()]
        assert [row["score"] for row in scored] == pytest.approx([row["score"] for row in dumped])


@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
def test_an_option_trains_alike_with_sequence_parallelism_and_hidden_states(pool, tmp_path, extra):
    alone = read_metrics(run(pool, tmp_path / "one", 1, overrides=extra))
    same(read_metrics(run(pool, tmp_path / "cut", 4, overrides=[*SEQUENCE_PARALLEL, *extra])), alone)


def test_weights_of_measured_gradients_are_the_same_on_every_layout(pool, tmp_path):
    settings = [*MEASURED, "rollout.prompts_per_step=6", "optim.eps=1e-3"]
    alone = read_metrics(run(pool, tmp_path / "one", 1, overrides=settings))
    same(read_metrics(run(pool, tmp_path / "cut", 4, overrides=[*SEQUENCE_PARALLEL, *settings])), alone)
    assert ["measured/cost" in row for row in alone] == [False, True, True, True]
    assert all(0 < row["measured/cost"] <= 4 for row in alone[1:])
    plain = read_metrics(run(pool, tmp_path / "rule", 1, overrides=[*settings, "weights.rule=score_bound"]))
    changed = [a["weight/format"] != b["weight/format"] for a, b in zip(alone, plain, strict=True)]
    assert changed[:3] == [False, False, True]  # a measurement counts from the next step on


def test_uniform_weights_measure_the_same_variance_as_themselves(pool, tmp_path):
    row = read_metrics(run(pool, tmp_path / "one", 1, files=[EXAMPLES / "baselines/grpo.yaml"]))[1]
    ours, uniform = (row[f"gradient_variance/{name}/variance"] for name in ("weights", "uniform"))
    assert ours == pytest.approx(uniform, rel=1e-5)
    assert row["weight_mass/format"] == pytest.approx(row["share/format"])


def test_the_ablation_without_cot_gradient_puts_no_weight_there(pool, tmp_path):
    rows = read_metrics(run(pool, tmp_path / "one", 1, files=[EXAMPLES / "ablations/no_cot_gradient.yaml"]))
    assert all(row["weight/cot"] == row["weight_mass/cot"] == 0 < row["weight/format"] for row in rows)
    assert all(row["share/cot"] > 0 for row in rows)


def test_without_the_ramp_the_reward_s_scale_stays(pool, tmp_path):
    file = EXAMPLES / "ablations/no_dynamic_reward.yaml"
    run_dir = run(pool, tmp_path / "one", 1, files=[file], overrides=["reward.overlong_buffer=0"])
    for step in (1, 2):
        rows = [json.loads(line) for line in (run_dir / f"rollouts/step-{step}.jsonl").read_text().splitlines()]
        assert max(row["format"] for row in rows) == 1.0 and max(row["correctness"] for row in rows) == 3.0


def test_a_dump_holds_every_token_s_region_weight_entropy_and_ratio(pool, tmp_path):
    run_dir = run(pool, tmp_path / "cut", 4, overrides=["parallel.tensor_model_parallel_size=2", "train.epochs=2"])
    rows = [json.loads(line) for line in (run_dir / "rollouts/step-1.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        assert {len(row[name]) for name in ("regions", "entropy", "weights", "importance", "ratio", "clipped")} == {
            len(row["ids"])
        }
        assert sum(row["weights"]) == pytest.approx(len(row["ids"]), rel=1e-5)
        assert row["regions"][-1] == "format"
    # The second epoch's ratios have moved away from 1.
    assert any(abs(ratio - 1) > 1e-4 for row in rows for ratio in row["ratio"])


@pytest.mark.parametrize("answer_format, name_share", [("hermes", True), ("llama3", False)])
def test_the_answers_grammar_and_the_chat_template_go_all_the_way(pool, tmp_path, answer_format, name_share):
    settings = [f"data.answer_format={answer_format}", "data.chat_template=keep_thinking", "weights.scope=response"]
    run_dir = run(pool, tmp_path / "cut", 2, overrides=settings)
    row = read_metrics(run_dir)[0]
    # The script's answers call in tags, which Llama 3 does not know.
    assert (row["share/tool_name"] > 0) == (row["reward/name"] > 0) == name_share
    template = (run_dir / "hf/chat_template.jinja").read_text()
    assert AutoTokenizer.from_pretrained(run_dir / "hf").chat_template == template
    assert template == (EXAMPLES.parent / "rest_megatron/data/templates/keep_thinking.jinja").read_text()


def test_the_engine_sleeps_whenever_it_has_answered_before_the_actor_goes_on(pool, tmp_path):
    words = [*make_run(tmp_path), *SETTINGS]
    answered, trained = ["publish", "generate", "sleep"], ["log_probs", "update"]
    (calls,) = pool.run(calls_of, 1, "train", [*words, f"data.eval={tmp_path}/rows.jsonl"])
    assert calls == [*answered, *(answered + trained) * 2, *answered]
    (calls,) = pool.run(calls_of, 1, "profile", words)
    assert calls == [*answered, "log_probs"]


def test_profile_tells_the_same_on_every_layout_and_the_bound_holds(pool, tmp_path):
    found = []
    for name, world_size, layout in (("one", 1, []), ("cut", 4, CUT), ("data", 2, [])):
        settings = ["profile.prompts=4", "algorithm.kl_coef=0.1", *layout]
        run_dir = run(pool, tmp_path / name, world_size, "profile 12", overrides=settings)
        assert (run_dir / "profile.png").read_bytes().startswith(b"\x89PNG")
        assert "lemma" in (run_dir / "profile.html").read_text().lower()
        found.append(json.loads((run_dir / "profile.json").read_text()))
    alone = found[0]
    assert alone["lemma_2"]["violations"] == 0 < alone["lemma_2"]["tokens"]
    assert alone["answers"] == 16 and alone["gradient_variance"]["weights"]["groups"] == 4
    for region in alone["regions"].values():
        assert region["score_norm"] <= region["bound"] + 1e-6
    for other in found[1:]:
        for name, numbers in alone["regions"].items():
            assert other["regions"][name] == pytest.approx(numbers, rel=1e-4)
        ours, theirs = alone["gradient_variance"], other["gradient_variance"]
        for name in ("weights", "uniform"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-8)
        # A policy that is uniform has uniform weights: the gains' difference is what rounding leaves of them.
        rounding = 1e-6 * ours["uniform"]["gain"]
        assert theirs["together"] == pytest.approx(ours["together"], rel=1e-3, abs=rounding)
        assert ours["together"]["cosine"] == pytest.approx(theirs["together"]["cosine"], rel=1e-5)
        for mine, one in zip(other["score_norm"]["each"], alone["score_norm"]["each"], strict=True):
            assert {name: value for name, value in mine.items() if isinstance(value, str)}.items() <= one.items()
            numbers = {name: value for name, value in one.items() if not isinstance(value, str)}
            assert {name: mine[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-6)


def test_a_judge_that_cannot_be_built_is_reported_by_every_rank(pool, tmp_path):
    words = [*make_run(tmp_path), *SETTINGS, f"run.dir={tmp_path / 'run'}"]
    words += ["reward.judge_url=http://127.0.0.1:9/v1", "reward.judge_model=judge", "reward.judge_weight=1"]
    found = pool.run(refused, 2, words, {"OPENAI_API_KEY": "a key\x07"})
    assert found[0] == found[1] and "OPENAI_API_KEY holds characters" in found[0]
