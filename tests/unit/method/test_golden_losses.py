"""Losses and advantages against those the published code computed, in float32, on the same numbers.

Where ours differs on purpose, the test names the defect of that code by its number in the list beside the vectors.
"""

import json
import math

import pytest
import torch

from rest_kernels import reference, vocab_parallel_ppo_loss
from rest_megatron.commands.weigh import AnswerReader
from rest_megatron.grammar import TOOLRL
from rest_megatron.method.advantages import group_relative
from rest_megatron.method.aggregation import loss_weights
from tests.paths import SHARED

GOLDEN = SHARED / "golden" / "loss.jsonl"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="needs ../shared/data")


def cases(kind: str) -> list:
    rows = [json.loads(line) for line in GOLDEN.read_text().splitlines()] if GOLDEN.exists() else []
    return [pytest.param(row, id=str(row["id"])) for row in rows if row["type"] == kind]


def flat(case: dict, name: str) -> torch.Tensor:
    """float64: the values of a padded [B, L] matrix at its mask, row after row."""
    return torch.tensor(case[name], dtype=torch.float64)[torch.tensor(case["mask"]) != 0]


def row_of_token(case: dict) -> torch.Tensor:
    return torch.tensor([i for i, row in enumerate(case["mask"]) for used in row if used], dtype=torch.int64)


def our_weights(case: dict, mode: str) -> torch.Tensor | None:
    """Our loss weights for a mode of that code; None where nothing has a weight, so that there is no mean."""
    rows, length = len(case["mask"]), len(case["mask"][0])
    weights = flat(case, "weights")
    # "seq-mean-token-mean" is weighted there although its name does not say so (defect 11).
    if mode in ("token-mean", "seq-mean-token-sum-norm"):
        weights = torch.ones_like(weights)
    if mode == "token-mean-weighted":
        mode = "token-mean"
    total = weights.sum().item()
    if total == 0:
        return None
    vector = loss_weights(weights, row_of_token(case), rows, mode, total, length).double()
    # Its "seq-mean" leaves out the mean over sequences in this mode, so its loss grows with the micro-batch.
    return vector * rows if mode == "seq-mean-token-sum-norm" else vector


MODES = ["token-mean", "token-mean-weighted", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


AGGREGATED = cases("agg")
EMPTY_ROW = [c for c in AGGREGATED if c.values[0]["agg"]["seq-mean-token-mean"] == "nan"]
NO_WEIGHT = [c for c in AGGREGATED if our_weights(c.values[0], "token-mean-weighted") is None]
AGGREGATIONS = [
    pytest.param(case.values[0], mode, id=f"{case.id}-{mode}")
    for case in AGGREGATED
    for mode in MODES
    if case.values[0]["agg"][mode] != "nan" and our_weights(case.values[0], mode) is not None
]


@pytest.mark.parametrize("case, mode", AGGREGATIONS)
def test_aggregated_losses(case, mode):
    loss = (our_weights(case, mode) * flat(case, "values")).sum()
    assert loss.item() == pytest.approx(case["agg"][mode], abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("case", [c for c in AGGREGATED if c not in NO_WEIGHT])
def test_the_gradient_of_the_weighted_mean(case):
    published = flat(case, "grad_token_mean_weighted")
    torch.testing.assert_close(our_weights(case, "token-mean-weighted"), published, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", EMPTY_ROW)
def test_defect_11_an_empty_row_is_nan_there_and_adds_nothing_here(case):
    weights, values, index = flat(case, "weights"), flat(case, "values"), row_of_token(case)
    loss = (loss_weights(weights, index, len(case["mask"]), "seq-mean-token-mean", 1.0, 1) * values).sum()
    means = [(weights * values)[index == i].mean().item() for i in index.unique()]
    assert loss.item() == pytest.approx(sum(means) / len(case["mask"]), abs=1e-6)


@pytest.mark.parametrize("case", NO_WEIGHT)
def test_defect_4_a_batch_without_weight_has_loss_zero_there_and_is_refused_here(case):
    assert case["agg"]["token-mean-weighted"] == 0.0
    weights = flat(case, "weights")
    with pytest.raises(ValueError, match="total_weight_global is 0"):
        loss_weights(weights, row_of_token(case), 1, "token-mean", weights.sum().item(), 1)


def ppo_settings(case: dict) -> dict[str, float]:
    cfg = case["cfg"]
    both = cfg["clip_ratio"]
    low, high = (both if cfg[f"clip_ratio_{side}"] is None else cfg[f"clip_ratio_{side}"] for side in ("low", "high"))
    return {"clip_ratio_low": low, "clip_ratio_high": high, "clip_ratio_dual": cfg["clip_ratio_c"]}


PPO_RUNS = [
    pytest.param(case.values[0], mode, id=f"{case.id}-{mode}")
    for case in cases("ppo")
    for mode in MODES
    if case.values[0]["out"][mode]["loss"] != "nan"
]


@pytest.mark.parametrize("case, mode", PPO_RUNS)
def test_clipped_losses_and_gradients(case, mode):
    weights = our_weights(case, mode)
    log_probs = flat(case, "log_prob").requires_grad_()
    token_loss = reference.ppo_token_loss(
        log_probs, flat(case, "old_log_prob"), flat(case, "advantages"), **ppo_settings(case)
    )
    loss = (weights * token_loss).sum()
    expected = case["out"][mode]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    published = torch.tensor(expected["grad"], dtype=torch.float64)[torch.tensor(case["mask"]) != 0]
    torch.testing.assert_close(gradient, published, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case, mode", PPO_RUNS)
def test_the_kernel_on_logits_gives_the_same_loss_gradient_and_clip_fractions(case, mode):
    """The loss reads a log-prob against the old one alone, so logits of zero and shifted old log-probs are the case."""
    gap = flat(case, "log_prob") - flat(case, "old_log_prob")
    logits = torch.zeros(len(gap), 4, dtype=torch.float64, requires_grad=True)
    out = vocab_parallel_ppo_loss(
        logits,
        torch.zeros(len(gap), dtype=torch.int64),
        -math.log(4) - gap,
        flat(case, "advantages"),
        our_weights(case, mode),
        **ppo_settings(case),
        backend="torch",
    )
    expected = case["out"][mode]
    assert out.loss.item() == pytest.approx(expected["loss"], rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    published = torch.tensor(expected["grad"], dtype=torch.float64)[torch.tensor(case["mask"]) != 0]
    # d log p_0 / d x_0 = 1 - p_0
    torch.testing.assert_close(gradient[:, 0], 0.75 * published, rtol=2e-6, atol=1e-6)
    if (flat(case, "weights") != 0).all():
        # Ours count what the dual clip holds among the clipped.
        clipped = (out.metrics["clipped"] / out.metrics["num_tokens"]).item()
        assert clipped == pytest.approx(expected["clipfrac"] + expected["clipfrac_lower"], abs=1e-6)


GRPO = cases("grpo")


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("case", [c for c in GRPO if c.values[0]["group"] > 1])
def test_group_relative_advantages(case, normalize_by_std):
    by_group = sorted(range(len(case["index"])), key=lambda i: case["index"][i])
    scores = torch.tensor(case["scores"])[by_group].view(case["prompts"], case["group"])
    ours = group_relative(scores, normalize_by_std=normalize_by_std).flatten()
    published = torch.tensor(case["out"][str(normalize_by_std)])[by_group]
    torch.testing.assert_close(ours[:, None] * torch.tensor(case["mask"])[by_group], published, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in GRPO if c.values[0]["group"] == 1])
def test_defect_24_the_score_of_a_lone_answer_is_its_advantage_there_and_is_refused_here(case):
    for row, score in zip(case["out"]["False"], case["scores"], strict=True):
        assert row[0] == pytest.approx(score, abs=1e-6)
    with pytest.raises(ValueError, match="group_size >= 2"):
        group_relative(torch.tensor(case["scores"])[:, None], normalize_by_std=True)


@pytest.mark.parametrize("case", cases("kl"))
def test_the_k3_estimate_of_kl(case):
    log_probs, ref_log_probs = (torch.tensor(case[name], dtype=torch.float64) for name in ("logprob", "ref_logprob"))
    published = torch.tensor(case["out"]["low_var_kl"], dtype=torch.float64)
    torch.testing.assert_close(reference.kl_to_reference(log_probs, ref_log_probs), published, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", cases("response_mask"))
def test_an_answer_ends_with_its_first_stop_token(case):
    stop_ids = frozenset([case["eos"]] if isinstance(case["eos"], int) else case["eos"])
    reader = AnswerReader([b"x"] * 8, stop_ids, TOOLRL, set())
    for ids, mask in zip(case["ids"], case["mask"], strict=True):
        length = len(reader({"ids": ids}).regions)
        assert [1] * length + [0] * (len(ids) - length) == mask


def test_every_kind_of_case_is_there():
    counts = {kind: len(cases(kind)) for kind in ("agg", "ppo", "grpo", "kl", "response_mask")}
    assert min(counts.values()) >= 6
    assert len(PPO_RUNS) > 80
    assert sum(counts.values()) == len(GOLDEN.read_text().splitlines())
