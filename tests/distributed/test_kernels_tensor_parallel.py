"""The kernels over real tensor-parallel groups (gloo), against float64 on the full vocabulary.

Each group size is launched once and runs every case; the tests then read what the ranks wrote.
"""

import math
import multiprocessing
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rest_kernels import reference, vocab_parallel_logprob_entropy, vocab_parallel_ppo_loss

F64 = torch.float64
NUM_TOKENS = 24


@dataclass(frozen=True)
class Case:
    """One set of shards. `widths` are the columns of each rank; `masked` columns are -inf."""

    widths: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    vocab_size: int | None = None
    masked: tuple[int, int] = (0, 0)
    shift: float = 0.0
    num_tokens: int = NUM_TOKENS
    settings: dict = field(default_factory=dict)

    @property
    def vocab(self) -> int:
        return self.vocab_size or sum(self.widths)


REGULARISED = {"clip_ratio_dual": 1.5, "kl_coef": 0.1, "entropy_coef": 0.05}
CASES = {
    2: {
        "equal": Case((16, 16), settings=REGULARISED),
        "float64": Case((11, 16), dtype=F64, settings=REGULARISED),
        "bfloat16": Case((160, 160), dtype=torch.bfloat16, settings={"entropy_coef": 0.05}),
        "uneven": Case((5, 1187)),
        "one column": Case((1, 31), settings=REGULARISED),
        "padded": Case((20, 20), vocab_size=33, settings=REGULARISED),
        "padding fills a shard": Case((24, 8), vocab_size=20, settings=REGULARISED),
        "first shard masked": Case((12, 20), masked=(0, 12), settings=REGULARISED),
        "last shard masked": Case((20, 12), masked=(20, 32), settings=REGULARISED),
        "shifted": Case((600, 587), shift=1e4, settings=REGULARISED),
        "no tokens": Case((16, 16), num_tokens=0),
    },
    4: {
        "equal": Case((32, 32, 32, 32), settings=REGULARISED),
        "float64": Case((7, 3, 1, 9), dtype=F64, settings=REGULARISED),
        "uneven": Case((300, 5, 881, 1)),
        "padded": Case((10, 10, 10, 10), vocab_size=15, settings=REGULARISED),
        "a middle shard masked": Case((9, 8, 8, 9), masked=(9, 17), settings=REGULARISED),
    },
}


def build(case: Case):
    """Full logits (padding columns hold nonsense), labels, PPO vectors and random upstream gradients."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, dtype=F64, generator=generator)

    tokens = case.num_tokens
    logits = (normal(tokens, sum(case.widths)) * 3 + case.shift).to(case.dtype)
    logits[:, case.vocab :] = 1e5
    logits[:, slice(*case.masked)] = -math.inf
    allowed = [column for column in range(case.vocab) if not case.masked[0] <= column < case.masked[1]]
    labels = torch.tensor(allowed)[torch.randint(0, len(allowed), (tokens,), generator=generator)]
    policy = reference.log_probs(logits[:, : case.vocab].double(), labels, 0.7)
    vectors = {
        "old_log_probs": policy + normal(tokens) * 0.5,
        "advantages": normal(tokens),
        "loss_weights": normal(tokens).abs() / max(tokens, 1),
        "ref_log_probs": policy + normal(tokens) * 0.3,
    }
    vectors["loss_weights"][1::4] = 0
    dtype = F64 if case.dtype == F64 else torch.float32
    return logits, labels, {name: value.to(dtype) for name, value in vectors.items()}, normal(2, tokens).to(dtype)


def run_case(case: Case, rank: int, group) -> dict:
    logits, labels, vectors, upstream = build(case)
    start = sum(case.widths[:rank])
    shard = logits[:, start : start + case.widths[rank]].clone().requires_grad_()
    common = {"temperature": 0.7, "tp_group": group, "vocab_size": case.vocab_size}
    values = vocab_parallel_logprob_entropy(shard, labels, entropy_requires_grad=True, return_collision=True, **common)
    (grad,) = torch.autograd.grad((values.log_probs, values.entropy), shard, upstream.unbind(0))
    ppo = vocab_parallel_ppo_loss(shard, labels, **vectors, **case.settings, **common)
    (ppo_grad,) = torch.autograd.grad(ppo.loss, shard)
    replicated = {
        "log_probs": values.log_probs,
        "entropy": values.entropy,
        "collision": values.collision,
        "ppo_loss": ppo.loss,
        "ppo_log_probs": ppo.log_probs,
        **{f"metrics/{name}": value for name, value in ppo.metrics.items()},
    }
    return {
        "replicated": {name: value.detach() for name, value in replicated.items()},
        "grad": grad,
        "ppo_grad": ppo_grad,
    }


def refused(width: int, vocab_size: int, group) -> str:
    try:
        labels = torch.zeros(2, dtype=torch.int64)
        vocab_parallel_logprob_entropy(torch.zeros(2, width), labels, vocab_size=vocab_size, tp_group=group)
    except ValueError as error:
        return str(error)
    return ""


def run_rank(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    results = {name: run_case(case, rank, dist.group.WORLD) for name, case in CASES[world_size].items()}
    results["refused"] = refused(4 + rank, 100, dist.group.WORLD)
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Results of all ranks for a world size, launched on first use."""
    multiprocessing.set_forkserver_preload(["torch"])  # import torch once for all ranks
    finished = {}

    def results(world_size):
        if world_size not in finished:
            directory = tmp_path_factory.mktemp(f"tp{world_size}")
            arguments = (world_size, str(directory))
            mp.start_processes(run_rank, arguments, nprocs=world_size, start_method="forkserver")
            finished[world_size] = [torch.load(directory / f"{rank}.pt") for rank in range(world_size)]
        return finished[world_size]

    return results


ALL = [pytest.param(size, name, id=f"tp{size}-{name}") for size, cases in CASES.items() for name in cases]


def tolerance(case: Case) -> float:
    return 1e-12 if case.dtype == F64 else 2e-6


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_values_match_float64_on_the_full_vocabulary(launch, world_size, name):
    case = CASES[world_size][name]
    logits, labels, *_ = build(case)
    exact = logits[:, : case.vocab].double()
    found = launch(world_size)[0][name]["replicated"]
    log_probs = reference.log_probs(exact, labels, 0.7)
    assert ((found["log_probs"] - log_probs).abs() <= tolerance(case) * (1 + log_probs.abs())).all()
    assert ((found["entropy"] - reference.entropy(exact, 0.7)).abs() <= 2 * tolerance(case)).all()
    assert ((found["collision"] - reference.collision(exact, 0.7)).abs() <= tolerance(case)).all()


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_every_rank_holds_the_same_bits(launch, world_size, name):
    first, *others = (rank[name]["replicated"] for rank in launch(world_size))
    for other in others:
        for key, value in first.items():
            assert torch.equal(value, other[key]), key


def assert_gradient(shards, case, exact):
    grad = torch.cat(shards, -1)
    assert grad.dtype == case.dtype
    assert (grad[:, case.vocab :] == 0).all()
    if grad.numel():
        error = (grad[:, : case.vocab] - exact).abs().max() / exact.abs().max()
        assert error <= (2**-8 if case.dtype == torch.bfloat16 else tolerance(case))


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_the_gradient_of_every_shard_is_that_of_the_full_logits(launch, world_size, name):
    case = CASES[world_size][name]
    logits, labels, _, upstream = build(case)
    exact_logits = logits[:, : case.vocab].double().requires_grad_()
    outputs = (reference.log_probs(exact_logits, labels, 0.7), reference.entropy(exact_logits, 0.7))
    (exact,) = torch.autograd.grad(outputs, exact_logits, upstream.double().unbind(0))
    assert_gradient([rank[name]["grad"] for rank in launch(world_size)], case, exact)


@pytest.mark.parametrize(("world_size", "name"), ALL)
def test_the_ppo_loss_and_its_gradient_are_those_of_the_full_logits(launch, world_size, name):
    case = CASES[world_size][name]
    logits, labels, vectors, _ = build(case)
    exact_logits = logits[:, : case.vocab].double().requires_grad_()
    vectors = {key: value.double() for key, value in vectors.items()}
    expected = reference.ppo_loss(exact_logits, labels, **vectors, **case.settings, temperature=0.7)
    (exact,) = torch.autograd.grad(expected, exact_logits)
    ranks = [rank[name] for rank in launch(world_size)]
    found = ranks[0]["replicated"]
    assert found["ppo_loss"].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert found["metrics/num_tokens"].item() == (vectors["loss_weights"] != 0).sum()
    assert_gradient([rank["ppo_grad"] for rank in ranks], case, exact)


@pytest.mark.parametrize("world_size", CASES)
def test_a_vocabulary_larger_than_its_shards_is_refused_on_every_rank(launch, world_size):
    widths = [4 + rank for rank in range(world_size)]
    for rank in launch(world_size):
        assert (
            f"vocab_size is 100, but the shards of the logits hold {widths} = {sum(widths)} columns" in rank["refused"]
        )
