"""The losses from hidden states over real tensor-parallel groups (gloo), with the sequence whole and cut."""

from dataclasses import dataclass

import pytest
import torch

from rest_kernels import linear_logprob_entropy, linear_ppo_loss
from tests.kernels.linear_cases import SETTINGS, exact_ppo, exact_stats, make
from tests.kernels.oracle import BF16, F32
from tests.kernels.ranks import run_ranks
from tests.kernels.target import available_targets

TARGET = available_targets()[0]
BARS = {F32: 2e-6, BF16: 4e-2}


@dataclass(frozen=True)
class Case:
    """`widths` are each rank's rows of the LM head; `vocab_size` leaves padding behind."""

    widths: tuple[int, ...]
    sequence_parallel: bool = False
    vocab_size: int | None = None
    leading_shape: tuple[int, ...] = (24,)
    num_weighted: int | None = None
    dtype: torch.dtype = F32
    trusted: bool = False


CASES = {
    2: {
        "equal": Case((30, 30)),
        "uneven": Case((7, 53)),
        "padded": Case((32, 32), vocab_size=60),
        "sequence cut": Case((30, 30), sequence_parallel=True),
        "sequence cut, 3-D, padded": Case((35, 35), sequence_parallel=True, vocab_size=60, leading_shape=(12, 2)),
        "no token counts": Case((30, 30), num_weighted=0),
        "no token counts, sequence cut": Case((30, 30), sequence_parallel=True, num_weighted=0),
        "bfloat16": Case((30, 30), dtype=BF16),
        "bfloat16, sequence cut": Case((30, 30), sequence_parallel=True, dtype=BF16),
        "trusted": Case((32, 32), vocab_size=60, trusted=True, sequence_parallel=True),
    },
    4: {"uneven, sequence cut": Case((1, 20, 9, 30), sequence_parallel=True)},
    8: {"uneven, sequence cut": Case((1, 9, 10, 3, 7, 10, 12, 8), sequence_parallel=True)},
}
ALL = [pytest.param(size, name, id=f"tp{size}-{name}") for size, cases in CASES.items() for name in cases]


def build(case: Case):
    """Inputs of `make` over a vocabulary of 60 ids."""
    hidden, weight, labels, vectors = make(vocab=60, dtype=case.dtype)
    if case.num_weighted is not None:
        vectors["loss_weights"][case.num_weighted :] = 0
    return hidden, weight, labels, vectors


def run_case(case: Case, rank: int, group) -> dict:
    hidden, weight, labels, vectors = build(case)
    padding = sum(case.widths) - 60
    start = sum(case.widths[:rank])
    padded = torch.nn.functional.pad(weight, (0, 0, 0, padding), value=9.0)
    shard = padded[start : start + case.widths[rank]].clone().requires_grad_()
    hidden = hidden.view(*case.leading_shape, -1)
    part = (hidden.chunk(group.size())[rank] if case.sequence_parallel else hidden).clone().requires_grad_()
    labels = labels.view(case.leading_shape)
    vectors = {name: value.view(case.leading_shape) for name, value in vectors.items()}
    common = {
        "tp_group": group,
        "sequence_parallel": case.sequence_parallel,
        "vocab_size": case.vocab_size,
        "vocab_start": start if case.trusted else None,
        "chunk_size": 7,
        "backend": TARGET.backend,
    }
    result = linear_ppo_loss(part, shard, labels, **vectors, **SETTINGS, **common)
    grads = torch.autograd.grad(result.loss * 1.7, (part, shard))
    stats = linear_logprob_entropy(part, shard, labels, temperature=0.7, entropy_requires_grad=True, **common)
    upstream = vectors["advantages"], vectors["ref_log_probs"]
    stats_grads = torch.autograd.grad((stats.log_probs, stats.entropy), (part, shard), upstream)
    replicated = {"loss": result.loss, "log_probs": result.log_probs, "entropy": result.entropy, **result.metrics}
    return {
        "replicated": {name: value.detach() for name, value in replicated.items()},
        "hidden_grad": grads[0],
        "weight_grad": grads[1],
        "stats_hidden_grad": stats_grads[0],
        "stats_weight_grad": stats_grads[1],
    }


def run_cases(rank: int, group) -> dict:
    return {name: run_case(case, rank, group) for name, case in CASES[group.size()].items()}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Results of all ranks for a world size, launched on first use."""
    finished = {}

    def results(world_size):
        if world_size not in finished:
            directory = tmp_path_factory.mktemp(f"linear-tp{world_size}")
            finished[world_size] = run_ranks(run_cases, world_size, directory)
        return finished[world_size]

    return results


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_the_loss_is_float64s_and_the_same_bits_on_every_rank(launch, world_size, name):
    ranks = [rank[name]["replicated"] for rank in launch(world_size)]
    loss = exact_ppo(*build(CASES[world_size][name]), SETTINGS)[0]
    bar = BARS[CASES[world_size][name].dtype]
    assert ranks[0]["loss"].item() == pytest.approx(loss.item(), rel=10 * bar, abs=bar)
    for other in ranks[1:]:
        assert all(torch.equal(value, other[key]) for key, value in ranks[0].items())


def whole_gradients(case: Case, ranks: list[dict], prefix: str):
    """(hidden's, weight's) gradient of the whole model from each rank's part."""
    parts = [rank[f"{prefix}hidden_grad"] for rank in ranks]
    hidden = torch.cat(parts) if case.sequence_parallel else parts[0]
    if not case.sequence_parallel:
        assert all(torch.equal(part, hidden) for part in parts)
    weight = torch.cat([rank[f"{prefix}weight_grad"] for rank in ranks])
    assert (weight[60:] == 0).all()
    return hidden.reshape(24, -1), weight[:60]


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_the_gradients_are_those_of_the_whole_head(launch, world_size, name):
    case = CASES[world_size][name]
    ranks = [rank[name] for rank in launch(world_size)]
    inputs = build(case)
    policy = exact_ppo(*inputs, SETTINGS, scale=1.7)[1:]
    upstream = inputs[3]["advantages"], inputs[3]["ref_log_probs"]
    stats = exact_stats(*inputs[:3], upstream)[3:]
    for prefix, exact in (("", policy), ("stats_", stats)):
        for grad, want in zip(whole_gradients(case, ranks, prefix), exact, strict=True):
            assert (grad - want).abs().max() <= BARS[case.dtype] * want.abs().max()
