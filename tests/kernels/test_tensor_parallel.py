"""The kernels over real tensor-parallel groups (gloo): against float64 on the full vocabulary, and against one shard.

Each group size is launched once and runs every case; the tests then read what the ranks wrote.
"""

import pytest
import torch

from rest_kernels import reference
from tests.kernels.oracle import BF16, F64, GRADIENT
from tests.kernels.ranks import run_ranks
from tests.kernels.tensor_parallel_cases import CASES, build, measure, run_everything

ALL = [pytest.param(size, case, id=f"tp{size}-{case.name}") for size, cases in CASES.items() for case in cases]
SEVERAL = [size for size in CASES if size > 1]


@pytest.fixture(scope="session")
def launch(target, tmp_path_factory):
    """Results of all ranks for a world size, launched on first use."""
    finished = {}

    def results(world_size):
        if world_size not in finished:
            directory = tmp_path_factory.mktemp(f"tp{world_size}")
            finished[world_size] = run_ranks(run_everything, world_size, directory, target)
        return finished[world_size]

    return results


@pytest.fixture
def ranks(launch, world_size, case):
    """Every rank's results of the case."""
    return [rank[case.name] for rank in launch(world_size)]


def tolerance(case, relative=2e-6):
    return 1e-12 if case.dtype == F64 else relative


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_values_match_float64_on_the_full_vocabulary(ranks, case):
    logits, labels, *_ = build(case)
    exact = logits[:, : case.vocab].double()
    found = ranks[0]["replicated"]
    log_probs = reference.log_probs(exact, labels, 0.7)
    assert ((found["log_probs"] - log_probs).abs() <= tolerance(case) * (1 + log_probs.abs())).all()
    assert ((found["entropy"] - reference.entropy(exact, 0.7)).abs() <= 2 * tolerance(case)).all()
    assert ((found["collision"] - reference.collision(exact, 0.7)).abs() <= tolerance(case)).all()


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_every_rank_holds_the_same_bits(ranks):
    first, *others = (rank["replicated"] for rank in ranks)
    for other in others:
        for key, value in first.items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_a_second_run_that_exchanges_no_sizes_gives_the_same_bits(ranks):
    for rank in ranks:
        for part in ("replicated", "grads"):
            for key, value in rank[part].items():
                assert torch.equal(value, rank["again"][part][key]), key


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_shards_equal_one_shard_of_the_full_vocabulary(ranks, case, target):
    whole = measure(target, case, *build(case), vocab_size=case.vocab)
    for key, value in whole["replicated"].items():
        found = ranks[0]["replicated"][key]
        # 1e-6 of what the value is made of; a sum over tokens has as many parts.
        parts = case.num_tokens if key.startswith(("metrics", "ppo_loss")) else 1
        assert ((found - value).abs() <= 1e-6 * parts * (1 + value.abs())).all(), key
    for key, value in whole["grads"].items():
        assert_gradient([rank["grads"][key] for rank in ranks], case, value, target)


def assert_gradient(shards, case, exact, target):
    grad = torch.cat(shards, -1)
    assert grad.dtype == case.dtype
    assert (grad[:, case.vocab :] == 0).all()
    found, exact = grad[:, : case.vocab].double(), exact[:, : case.vocab].double()
    assert found.shape == exact.shape
    if found.numel():
        unit = target.unit(BF16) if case.dtype == BF16 else 0.0
        bar = unit * exact.abs() + tolerance(case, GRADIENT) * exact.abs().max()
        assert ((found - exact).abs() <= bar).all()


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_the_gradient_of_every_shard_is_that_of_the_full_logits(ranks, case, target):
    logits, labels, _, upstream = build(case)
    exact_logits = logits[:, : case.vocab].double().requires_grad_()
    outputs = (reference.log_probs(exact_logits, labels, 0.7), reference.entropy(exact_logits, 0.7))
    (exact,) = torch.autograd.grad(outputs, exact_logits, upstream.double().unbind(0))
    assert_gradient([rank["grads"]["grad"] for rank in ranks], case, exact, target)


@pytest.mark.parametrize(("world_size", "case"), ALL)
def test_the_ppo_loss_and_its_gradient_are_those_of_the_full_logits(ranks, case, target):
    logits, labels, vectors, _ = build(case)
    exact_logits = logits[:, : case.vocab].double().requires_grad_()
    vectors = {key: value.double() for key, value in vectors.items()}
    expected = reference.ppo_loss(exact_logits, labels, **vectors, **case.settings, temperature=0.7)
    (exact,) = torch.autograd.grad(expected * 1.7, exact_logits)
    found = ranks[0]["replicated"]
    assert found["ppo_loss"].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert found["metrics/num_tokens"].item() == (vectors["loss_weights"] != 0).sum()
    assert_gradient([rank["grads"]["ppo_grad"] for rank in ranks], case, exact, target)


@pytest.mark.parametrize("world_size", CASES)
def test_a_vocabulary_larger_than_its_shards_is_refused_on_every_rank(launch, world_size):
    widths = [4 + rank for rank in range(world_size)]
    message = f"vocab_size is 100, but the shards of the logits hold {widths} = {sum(widths)} columns"
    assert all(message in rank["vocab_size too large"] for rank in launch(world_size))


@pytest.mark.parametrize("world_size", SEVERAL)
def test_ranks_with_other_tokens_are_refused_on_every_rank(launch, world_size):
    message = f"the ranks of tp_group have {[2 + rank for rank in range(world_size)]} tokens"
    assert all(message in rank["other tokens"] for rank in launch(world_size))


@pytest.mark.parametrize("world_size", SEVERAL)
def test_a_first_column_without_the_size_of_the_vocabulary_is_refused(launch, world_size):
    for index, rank in enumerate(launch(world_size)):
        assert f"vocab_start is {4 * index} but vocab_size is None" in rank["no vocab_size"]
        assert "vocab_start is -4; it must be the id" in rank["negative vocab_start"]


@pytest.mark.parametrize("world_size", SEVERAL)
def test_one_collective_forward_and_none_backward_when_the_first_column_is_given(launch, world_size):
    for rank in launch(world_size):
        assert rank["collectives"] == {"exchange": (2, 0), "trusted": (1, 0), "trusted, no tokens": (1, 0)}


@pytest.mark.parametrize("world_size", SEVERAL)
def test_one_ranks_not_a_number_reaches_every_rank(launch, world_size):
    for rank in launch(world_size):
        assert rank["poisoned"].isnan().tolist() == [False, True]
