"""Importance correction in training: its gradient against Hugging Face's, what it leaves out, and its metrics."""

import json
import math

import numpy as np
import pytest
import torch

from rest_megatron.rollout.sampler import Sampler
from tests.distributed.cases import Layout, merged
from tests.distributed.importance_cases import corrected_gradient, masked_mini_batch, mismatch, spoiled
from tests.distributed.noise import gradient_error
from tests.distributed.training_cases import NoisyEngine, read_metrics
from tests.distributed.training_runs import CUT, run, same
from tests.tiny import load, policy_loss, response_logits

LAYOUTS = [Layout(max_tokens=2000), Layout(tp=2, pp=2, sp=True, max_tokens=32), Layout(pp=2, dp=2, level="hidden")]
ALGORITHMS = {
    "cap and mask": {"importance_cap": 1.5, "importance_mask": 1.4},
    "cap": {"importance_cap": 1.5, "importance_mask": None},
    "mask": {"importance_cap": None, "importance_mask": 1.4},
    "token-mean": {"importance_cap": 1.5, "importance_mask": 1.4, "loss_aggregation": "token-mean"},
}
ON = ["algorithm.importance_cap=1.5", "algorithm.importance_mask=1.6"]


@pytest.fixture(scope="module")
def engine_log_probs(answers):
    """An engine's that are off by about 0.6 at every token, and each answer's by as much as a whole."""
    generator = torch.Generator().manual_seed(5)
    whole = torch.cat(
        [0.4 * torch.randn(1, generator=generator).repeat(len(t.response_ids)) for t in answers.trajectories]
    )
    return answers.old_log_probs + whole + 0.6 * torch.randn(len(whole), generator=generator)


def corrected_loss_weights(answers, engine, algorithm) -> tuple[torch.Tensor, set[str]]:
    """Token weight x ratio / normaliser, written out one answer at a time; and what has happened to the ratios."""
    cap, limit = algorithm["importance_cap"], algorithm["importance_mask"]
    lengths = [len(t.response_ids) for t in answers.trajectories]
    parts = zip(
        *(x.double().split(lengths) for x in (answers.old_log_probs, engine, answers.loss_weights)), strict=True
    )
    values, seen = [], set()
    for old, drawn, weights in parts:
        gap = old - drawn
        outside = limit is not None and not 1 / limit <= float(gap.mean().exp()) <= limit
        ratio = torch.ones_like(gap) if cap is None else gap.exp().clamp(max=cap)
        seen |= {"masked" if outside else "kept", "free" if cap is None or (ratio < cap).all() else "capped"}
        token_mean = algorithm.get("loss_aggregation") == "token-mean"
        norm = answers.loss_weights.double().sum() if token_mean else len(old) * len(lengths)
        values.append(weights * ratio * (not outside) / norm)
    return torch.cat(values), seen


# All of them on TP 2 x PP 2, the first on the other layouts, too, and all on all with --slow.
GRADIENT_CASES = [
    pytest.param(
        *(layout, algorithm),
        id=f"{name}-{layout}",
        marks=[] if name == "cap and mask" or layout == LAYOUTS[1] else pytest.mark.slow,
    )
    for name, algorithm in ALGORITHMS.items()
    for layout in LAYOUTS
]


@pytest.mark.parametrize("layout, algorithm", GRADIENT_CASES)
def test_the_gradient_is_that_of_the_corrected_loss(
    pool, tiny_model, answers, engine_log_probs, bars, within, layout, algorithm
):
    weights, seen = corrected_loss_weights(answers, engine_log_probs, algorithm)
    assert ("masked" in seen) == (algorithm["importance_mask"] is not None) and "kept" in seen
    assert ("capped" in seen) == (algorithm["importance_cap"] is not None)
    model = load(tiny_model(), torch.float64)
    wanted = type(answers)(answers.trajectories, answers.old_log_probs, answers.advantages, weights)
    policy_loss(response_logits(model, answers.trajectories), wanted)[0].backward()
    args = (tiny_model(), layout, answers, engine_log_probs, algorithm)
    found = merged(pool.run(corrected_gradient, layout.world_size, *args), "gradients")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    within({"gradient": gradient_error(found, gradients)}, bars())


@pytest.mark.parametrize("layout", [Layout(max_tokens=2000), Layout(tp=2, dp=2)], ids=str)
def test_a_mini_batch_of_masked_answers_is_passed_over(pool, tiny_model, answers, layout):
    for result in pool.run(masked_mini_batch, layout.world_size, tiny_model(), layout, answers):
        cut = result["cut"]
        assert result["version"] == 1
        assert (result["importance"][:cut] == 0).all() and (result["corrected"][:cut] == 0).all()
        assert (result["importance"][cut:] == 1).all()
        assert torch.equal(result["log_probs"][:cut], result["old"][:cut])
        assert torch.allclose(result["log_probs"][cut:], result["old"][cut:], atol=1e-5)
        assert result["metrics"]["actor/ratio"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("weight, steps", [(0.5, 0), (0.0, 1)])
def test_a_log_prob_that_is_not_finite_takes_no_step_unless_the_loss_does_not_read_it(
    pool, tiny_model, answers, weight, steps
):
    assert pool.run(spoiled, 1, tiny_model(), Layout(max_tokens=2000), answers, weight) == [steps]


def effective_sample_size(weights: list[float]) -> float:
    """From the normalised weights, as Kong has it."""
    normalised = np.array(weights) / math.fsum(weights)
    return 1 / (len(weights) * math.fsum(normalised**2))


def mismatch_written_out(lengths, versions, actor, engine, cap, mask) -> dict[str, float]:
    gaps = (actor.double() - engine.double()).split(list(lengths))
    tokens = [(float(gap), version) for part, version in zip(gaps, versions, strict=True) for gap in part]

    def mean(values):
        values = list(values)
        return math.fsum(values) / len(values)

    outside = [not 1 / mask <= float(part.mean().exp()) <= mask for part in gaps]
    weights = [
        0.0 if out else min(math.exp(gap), cap)
        for part, out in zip(gaps, outside, strict=True)
        for gap in part.tolist()
    ]
    products = [0.0 if out else math.exp(part.sum()) for part, out in zip(gaps, outside, strict=True)]
    return {
        "mismatch/effective_sample_size": effective_sample_size(weights),
        "mismatch/effective_sample_size_answers": effective_sample_size(products),
        "mismatch/mean": mean(abs(gap) for gap, _ in tokens),
        "mismatch/max": max(abs(gap) for gap, _ in tokens),
        "mismatch/k3": mean(math.exp(gap) - 1 - gap for gap, _ in tokens),
        "mismatch/clipped": mean(float(math.exp(gap) > cap) for gap, _ in tokens),
        "mismatch/masked_answers": mean(map(float, outside)),
        **{f"mismatch/mean/version_{v}": mean(abs(gap) for gap, of in tokens if of == v) for v in set(versions)},
        **{
            f"mismatch/clipped/version_{v}": mean(float(math.exp(gap) > cap) for gap, of in tokens if of == v)
            for v in set(versions)
        },
    }


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_mismatch_metrics_are_those_of_all_ranks_tokens(pool, ranks):
    lengths, versions = (9, 4, 17), (3, 12, 3)  # of four ranks one has no answer
    generator = torch.Generator().manual_seed(2)
    engine = -3 * torch.rand(sum(lengths), generator=generator)
    actor = engine + 0.5 * torch.randn(sum(lengths), generator=generator)
    actor[9:13] += 0.8
    wanted = mismatch_written_out(lengths, versions, actor, engine, 1.3, 1.5)
    assert 0 < wanted["mismatch/masked_answers"] < 1 and 0 < wanted["mismatch/clipped/version_3"] < 1
    algorithm = {"importance_cap": 1.3, "importance_mask": 1.5}
    for found in pool.run(mismatch, ranks, lengths, versions, actor, engine, algorithm):
        assert found == pytest.approx(wanted, rel=1e-5)


def test_one_version_has_no_metrics_of_its_own_and_what_is_off_clips_and_masks_nothing(pool):
    algorithm = {"importance_cap": None, "importance_mask": None}
    (found,) = pool.run(mismatch, 1, (2,), (5,), torch.tensor([-9.0, -1.0]), torch.zeros(2), algorithm)
    k3 = (math.exp(-9) - 1 + 9 + math.exp(-1)) / 2
    assert found == pytest.approx(
        {
            "mismatch/mean": 5.0,
            "mismatch/max": 9.0,
            "mismatch/k3": k3,
            "mismatch/clipped": 0.0,
            "mismatch/masked_answers": 0.0,
            "mismatch/effective_sample_size": 1.0,
            "mismatch/effective_sample_size_answers": 1.0,
        },
        rel=1e-6,
    )


def test_the_effective_sample_size_of_answers_neither_over_nor_underflows_and_knows_nothing_where_all_are_masked(pool):
    actor, engine = torch.zeros(4), torch.tensor([900.0, 900.0, 901.0, 900.0])  # products e^-1800 and e^-1801
    for sign in (1, -1):
        algorithm = {"importance_cap": None, "importance_mask": None}
        for found in pool.run(mismatch, 2, (2, 2), (5, 5), actor, sign * engine, algorithm):
            share = (1 + math.exp(-1)) ** 2 / 2 / (1 + math.exp(-2))
            assert found["mismatch/effective_sample_size_answers"] == pytest.approx(share, rel=1e-9)
    for found in pool.run(mismatch, 2, (2, 2), (5, 5), actor, engine, {"importance_cap": 2.0, "importance_mask": 2.0}):
        assert math.isnan(found["mismatch/effective_sample_size"])
        assert math.isnan(found["mismatch/effective_sample_size_answers"])


@pytest.mark.parametrize(
    "world_size, layout, ratio",
    [
        (4, CUT, "token"),
        (3, [], "sequence"),
        pytest.param(4, CUT, "sequence", marks=pytest.mark.slow),
        pytest.param(3, [], "token", marks=pytest.mark.slow),
    ],
    ids=["tp2-pp2-token", "dp3-sequence", "tp2-pp2-sequence", "dp3-token"],
)
def test_a_corrected_run_is_alike_on_every_layout(pool, tmp_path, world_size, layout, ratio):
    settings = [*ON, f"algorithm.ratio={ratio}", "train.mini_batch_size=4", "rollout.prompts_per_step=3"]
    settings += ["train.epochs=2", "train.steps=3"]
    alone = read_metrics(run(pool, tmp_path / "one", 1, overrides=settings, engine=NoisyEngine))
    cut = run(pool, tmp_path / "cut", world_size, overrides=[*settings, *layout], engine=NoisyEngine)
    same(read_metrics(cut), alone)
    for row in alone:
        assert 0 < row["mismatch/masked_answers"] < 1 and 0 < row["mismatch/clipped"] < 1
        assert row["rollout/weight_lag"] == 0 and row["alarm/mismatch"] == 1
        assert math.isfinite(row["actor/grad_norm"]) and row["actor/grad_norm"] > 0
    versions = [row["rollout/weight_version"] for row in alone]
    assert versions[0] == 0 < versions[1] < versions[2]


@pytest.fixture(scope="module")
def corrected(pool, tmp_path_factory):
    """The directory of a corrected run on two data-parallel ranks."""
    directory = tmp_path_factory.mktemp("corrected")
    return run(pool, directory / "cut", 2, overrides=[*ON, "train.epochs=2"], engine=NoisyEngine)


def test_a_dump_tells_which_answers_were_masked_and_what_the_cap_left(corrected):
    rows = [json.loads(line) for line in (corrected / "rollouts/step-1.jsonl").read_text().splitlines()]
    masked = [row for row in rows if not any(row["importance"])]
    kept = [row for row in rows if all(row["importance"])]
    assert masked and kept and len(masked) + len(kept) == len(rows)
    assert read_metrics(corrected)[0]["mismatch/masked_answers"] == pytest.approx(len(masked) / len(rows))
    assert max(value for row in kept for value in row["importance"]) == 1.5
    for row in masked:  # nothing was read there: no ratio to tell, and nothing clipped
        assert set(row["ratio"]) == {1.0} and not any(row["clipped"])
        assert sum(row["weights"]) == pytest.approx(len(row["ids"]), rel=1e-5)
    assert any(abs(ratio - 1) > 1e-4 for row in kept for ratio in row["ratio"])


def test_region_metrics_leave_masked_answers_out_and_weigh_what_the_loss_weighs(corrected):
    rows = [json.loads(line) for line in (corrected / "rollouts/step-1.jsonl").read_text().splitlines()]
    columns = ("regions", "weights", "importance", "ratio")
    tokens = [token for row in rows for token in zip(*(row[name] for name in columns), strict=True)]
    total = math.fsum(weight * importance for _, weight, importance, _ in tokens)
    row = read_metrics(corrected)[0]
    for region in ("format", "parameters", "cot"):
        own = [token[1:] for token in tokens if token[0] == region]
        read = [ratio for _, importance, ratio in own if importance]
        assert 0 < len(read) < len(own)
        assert row[f"ratio/{region}"] == pytest.approx(math.fsum(read) / len(read), rel=1e-6)
        mass = math.fsum(weight * importance for weight, importance, _ in own)
        assert row[f"weight_mass/{region}"] == pytest.approx(mass / total, rel=1e-5)


@pytest.mark.parametrize("world_size, layout", [(2, []), (4, CUT)], ids=["dp2", "tp2-pp2"])
def test_length_bias_is_that_of_the_dumped_answers(pool, tmp_path, world_size, layout):
    settings = ["algorithm.loss_aggregation=token-mean", "train.epochs=2", *ON, *layout]
    run_dir = run(pool, tmp_path / "run", world_size, overrides=settings, engine=NoisyEngine)
    rows = [json.loads(line) for line in (run_dir / "rollouts/step-1.jsonl").read_text().splitlines()]
    loss = [np.dot(row["weights"], row["importance"]) * abs(row["advantage"]) for row in rows]
    kept = [(len(row["ids"]), row["advantage"], share) for row, share in zip(rows, loss, strict=True) if share]
    length, advantage, share = np.array(kept).T
    assert 2 < len(kept) < len(rows) and len(set(length)) > 1
    found = {name: value for name, value in read_metrics(run_dir)[0].items() if name.startswith("length_bias/")}
    assert found == pytest.approx(
        {
            "length_bias/correlation": np.corrcoef(length, advantage)[0, 1],
            "length_bias/better": length[advantage > 0].mean() / length[advantage < 0].mean(),
            "length_bias/weight": np.average(length, weights=share) / length.mean(),
        },
        rel=1e-5,
    )


def test_profile_measures_corrected_gradients(pool, tmp_path):
    found = []
    for name, world_size, settings in (("on", 1, ON), ("cut", 2, ON), ("off", 1, [])):
        words = ["profile.prompts=4", *settings]
        run_dir = run(pool, tmp_path / name, world_size, "profile", overrides=words, engine=NoisyEngine)
        found.append(json.loads((run_dir / "profile.json").read_text())["gradient_variance"])
    on, cut, off = found
    for name in ("weights", "uniform"):
        assert cut[name] == pytest.approx(on[name], rel=1e-3, abs=1e-8)
        assert abs(off[name]["variance"] / on[name]["variance"] - 1) > 0.05


@pytest.mark.parametrize("world_size, layout", [(1, []), (4, CUT)], ids=["one", "tp2-pp2"])
def test_what_the_sampler_draws_needs_no_correction(pool, tmp_path, world_size, layout):
    settings = ["algorithm.importance_cap=2", "algorithm.importance_mask=2", "rollout.max_new_tokens=24", *layout]
    run_dir = run(pool, tmp_path / "run", world_size, overrides=settings, engine=Sampler)
    for step, row in enumerate(read_metrics(run_dir), start=1):
        assert row["mismatch/mean"] <= row["mismatch/max"] < 1e-4 and row["mismatch/k3"] < 1e-8
        assert row["mismatch/clipped"] == row["mismatch/masked_answers"] == row["alarm/mismatch"] == 0
        dumped = [json.loads(line) for line in (run_dir / f"rollouts/step-{step}.jsonl").read_text().splitlines()]
        ratios = [ratio for answer in dumped for ratio in answer["importance"]]
        assert ratios and all(abs(ratio - 1) < 1e-4 for ratio in ratios)
