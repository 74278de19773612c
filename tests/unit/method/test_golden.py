"""Regions, weights, advantages and losses of our own cases, as their formulas say; no other data is needed."""

from itertools import pairwise

import pytest
import torch

from rest_kernels import reference
from rest_megatron.config.schema import WeightsConfig
from rest_megatron.grammar import GRAMMARS
from rest_megatron.method.advantages import group_relative, leave_one_out, overlong_penalty
from rest_megatron.method.aggregation import loss_weights
from rest_megatron.method.curriculum import scheduled_weights
from rest_megatron.method.ratio import sequence_ppo_loss
from rest_megatron.method.reference_weights import reference_weights
from rest_megatron.method.regions import Region, label_regions
from rest_megatron.method.weights import WeightState, region_sums, token_statistic, token_weights
from tests.golden import files


def cases(name: str, kind: str | None = None) -> list:
    rows = [row for row in files.read(name) if row.get("kind") == kind]
    return [pytest.param(row, id=f"{i}-{row.get('name', '')}") for i, row in enumerate(rows)]


def exact(case: dict, name: str) -> torch.Tensor:
    return torch.tensor(case[name], dtype=torch.float64)


@pytest.mark.parametrize("case", cases("regions"))
@pytest.mark.parametrize("stop_token", [False, True])
def test_regions(case, stop_token):
    text = case["text"].encode()
    for cut in case["cuts"]:
        pieces = [text[a:b] for a, b in pairwise([0, *cut["ends"]])] + [b"<|im_end|>"] * stop_token
        expected = cut["regions"] + ["format"] * stop_token
        labels = label_regions(pieces, stop_token=stop_token, grammar=GRAMMARS[case["grammar"]])
        assert [Region(label).label for label in labels] == expected


@pytest.mark.parametrize("case", cases("weights", "paper"))
def test_weights_of_the_paper(case):
    settings = WeightsConfig(rule=case["rule"])
    lengths = torch.tensor([len(answer) for answer in case["regions"]])
    index = torch.arange(len(lengths)).repeat_interleave(lengths)
    regions, entropy, collision = (
        torch.tensor([x for answer in case[name] for x in answer]) for name in ("regions", "entropy", "collision")
    )
    statistic = token_statistic(case["rule"], entropy.double(), collision.double(), torch.ones(len(index)))
    sums, counts = region_sums(statistic, regions)
    by_region = scheduled_weights(sums / counts, case["progress"], WeightState(), settings)
    weights = token_weights(by_region, regions, index, len(lengths))
    assert weights.tolist() == pytest.approx([x for answer in case["expected"] for x in answer], rel=4e-6)


@pytest.mark.parametrize("case", cases("weights", "reference"))
def test_weights_of_the_published_code(case):
    weights = reference_weights([piece.encode() for piece in case["pieces"]], step=case["step"])
    assert weights == pytest.approx(case["expected"], rel=1e-11)


@pytest.mark.parametrize("case", cases("advantages", "group"))
def test_advantages(case):
    scores = exact(case, "scores")[None]
    found = {
        "grpo": group_relative(scores, normalize_by_std=True),
        "dr_grpo": group_relative(scores, normalize_by_std=False),
        "rloo": leave_one_out(scores),
    }
    for name, advantages in found.items():
        assert advantages[0].tolist() == pytest.approx(case[name], rel=1e-6), name


@pytest.mark.parametrize("case", cases("advantages", "overlong"))
def test_the_penalty_on_long_answers(case):
    penalty = overlong_penalty(torch.tensor([case["length"]]), case["max_new_tokens"], case["buffer"], case["penalty"])
    assert penalty.item() == pytest.approx(case["expected"])


def answer_index(case: dict) -> torch.Tensor:
    return torch.arange(len(case["lengths"])).repeat_interleave(torch.tensor(case["lengths"]))


@pytest.mark.parametrize("case", cases("losses"))
def test_aggregation(case):
    weights = exact(case, "token_weights")
    total = weights.sum().item()
    made = loss_weights(weights, answer_index(case), len(case["lengths"]), case["mode"], total, case["max_new_tokens"])
    assert made.tolist() == pytest.approx(case["loss_weights"], rel=1e-6)


@pytest.mark.parametrize("case", cases("losses"))
def test_the_loss_per_token_and_its_gradient(case):
    log_probs = exact(case, "log_probs").requires_grad_()
    per_token = reference.ppo_token_loss(
        log_probs, exact(case, "old_log_probs"), exact(case, "advantages"), **case["settings"]
    )
    kl = reference.kl_to_reference(log_probs, exact(case, "ref_log_probs"))
    loss = (exact(case, "loss_weights") * (per_token + case["kl_coef"] * kl)).sum()
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss.item() == pytest.approx(case["token"]["loss"], rel=1e-10)
    assert gradient.tolist() == pytest.approx(case["token"]["gradient"], rel=1e-10)


@pytest.mark.parametrize("case", [case for case in cases("losses") if "sequence" in case.values[0]])
def test_the_loss_with_one_ratio_per_answer_and_its_gradient(case):
    log_probs = exact(case, "log_probs").requires_grad_()
    vectors = (exact(case, name) for name in ("old_log_probs", "advantages", "loss_weights"))
    loss, _ = sequence_ppo_loss(log_probs, *vectors, answer_index(case), len(case["lengths"]), **case["settings"])
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss.item() == pytest.approx(case["sequence"]["loss"], rel=1e-10)
    assert gradient.tolist() == pytest.approx(case["sequence"]["gradient"], rel=1e-10)
