"""What every rank of a tensor-parallel group computes, for the tests to read."""

import math
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from rest_kernels import reference
from tests.kernels.oracle import BF16, F32, F64
from tests.kernels.target import Target

NUM_TOKENS = 8
REGULARISED = {"clip_ratio_dual": 1.5, "kl_coef": 0.1, "entropy_coef": 0.05}


@dataclass(frozen=True)
class Case:
    """One set of shards. `widths` are the columns of each rank; `masked` columns are -inf."""

    name: str
    widths: tuple[int, ...]
    dtype: torch.dtype = F32
    vocab_size: int | None = None
    masked: tuple[int, int] = (0, 0)
    shift: float = 0.0
    num_tokens: int = NUM_TOKENS
    settings: dict = field(default_factory=dict)

    @property
    def vocab(self) -> int:
        return self.vocab_size or sum(self.widths)


CASES = {
    1: [
        Case("alone", (37,), settings=REGULARISED),
    ],
    2: [
        Case("equal", (16, 16), settings=REGULARISED),
        Case("float64", (11, 16), dtype=F64, settings=REGULARISED),
        Case("bfloat16", (160, 161), dtype=BF16, settings={"entropy_coef": 0.05}),
        Case("uneven", (5, 1187)),
        Case("one column", (1, 31), settings=REGULARISED),
        Case("padded", (20, 20), vocab_size=33, settings=REGULARISED),
        Case("padding fills a shard", (24, 8), vocab_size=20, settings=REGULARISED),
        Case("first shard masked", (12, 20), masked=(0, 12), settings=REGULARISED),
        Case("last shard masked", (20, 12), masked=(20, 32), settings=REGULARISED),
        Case("shifted", (600, 587), shift=1e4, settings=REGULARISED),
        Case("no tokens", (16, 16), num_tokens=0),
    ],
    4: [
        Case("float64", (7, 3, 1, 9), dtype=F64, settings=REGULARISED),
        Case("uneven", (300, 5, 881, 1), settings=REGULARISED),
        Case("padded", (10, 10, 10, 10), vocab_size=15, settings=REGULARISED),
        Case("a middle shard masked", (9, 8, 8, 9), masked=(9, 17), settings=REGULARISED),
    ],
    8: [
        Case("uneven", (40, 1, 17, 300, 5, 64, 3, 128), num_tokens=5, settings=REGULARISED),
        Case("padded, shifted, bfloat16", (32,) * 8, BF16, vocab_size=150, shift=-150.0, num_tokens=5),
    ],
}


def cases_of(world_size: int, target: Target) -> list[Case]:
    """The cases of a group's size; Triton has none in float64."""
    return [case for case in CASES[world_size] if target.backend != "triton" or case.dtype != F64]


def build(case: Case) -> tuple[Tensor, Tensor, dict, Tensor]:
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
    dtype = F64 if case.dtype == F64 else F32
    return logits, labels, {name: value.to(dtype) for name, value in vectors.items()}, normal(2, tokens).to(dtype)


def measure(target: Target, case: Case, logits: Tensor, labels: Tensor, vectors: dict, upstream: Tensor, **where):
    """What is replicated, and the two gradients of this rank's columns."""
    leaf = logits.clone().requires_grad_()
    common = {"temperature": 0.7, **where}
    values = target.logprob_entropy(leaf, labels, entropy_requires_grad=True, return_collision=True, **common)
    (grad,) = torch.autograd.grad((values.log_probs, values.entropy), leaf, upstream.unbind(0))
    ppo = target.ppo_loss(leaf, labels, **vectors, **case.settings, **common)
    (ppo_grad,) = torch.autograd.grad(ppo.loss * 1.7, leaf)
    replicated = {
        "log_probs": values.log_probs,
        "entropy": values.entropy,
        "collision": values.collision,
        "ppo_loss": ppo.loss,
        "ppo_log_probs": ppo.log_probs,
        "ppo_entropy": ppo.entropy,
        **{f"metrics/{name}": value for name, value in ppo.metrics.items()},
    }
    return {
        "replicated": {name: value.detach() for name, value in replicated.items()},
        "grads": {"grad": grad, "ppo_grad": ppo_grad},
    }


def run_case(rank: int, group, target: Target, case: Case) -> dict:
    """The case with the ranks exchanging their sizes, and again with each told where it starts."""
    logits, *rest = build(case)
    start = sum(case.widths[:rank])
    shard = logits[:, start : start + case.widths[rank]]
    first = measure(target, case, shard, *rest, tp_group=group, vocab_size=case.vocab_size)
    again = measure(target, case, shard, *rest, tp_group=group, vocab_size=case.vocab, vocab_start=start)
    return first | {"again": again}


def refusal(target: Target, width: int, num_tokens: int = 2, **where) -> str:
    """The message of the ValueError; empty where there was none."""
    try:
        target.logprob_entropy(torch.zeros(num_tokens, width), torch.zeros(num_tokens, dtype=torch.int64), **where)
    except ValueError as error:
        return str(error)
    return ""


def collectives(target: Target, num_tokens: int, **where) -> tuple[int, int]:
    """How many times the ranks exchange something in one forward pass, and in its backward pass."""
    names = [name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast", "gather", "barrier"))]
    real = dist.all_gather_into_tensor
    with mock.patch.multiple(dist, **{name: mock.DEFAULT for name in names}) as calls:
        calls["all_gather_into_tensor"].side_effect = real
        leaf = torch.zeros(num_tokens, 8, requires_grad=True)
        zeros = torch.zeros(num_tokens)
        vectors = dict.fromkeys(("old_log_probs", "advantages", "loss_weights"), zeros + 1)
        loss = target.ppo_loss(leaf, zeros.long(), **vectors, **where).loss
        forward = sum(call.call_count for call in calls.values())
        loss.backward()
        return forward, sum(call.call_count for call in calls.values()) - forward


def run_everything(rank: int, group, target: Target) -> dict:
    """Every case of this group's size, refusals, counts of collectives and a poisoned shard."""
    size = group.size()
    trusted = {"tp_group": group, "vocab_start": 8 * rank, "vocab_size": 8 * size}
    poisoned = torch.zeros(2, 8)
    if rank == size - 1:
        poisoned[1, 5] = math.nan
    return {
        **{case.name: run_case(rank, group, target, case) for case in cases_of(size, target)},
        "vocab_size too large": refusal(target, 4 + rank, vocab_size=100, tp_group=group),
        "other tokens": refusal(target, 4, num_tokens=2 + rank, tp_group=group),
        "no vocab_size": refusal(target, 4, vocab_start=4 * rank, tp_group=group),
        "negative vocab_start": refusal(target, 4, vocab_start=-4, vocab_size=8, tp_group=group),
        "collectives": {
            "exchange": collectives(target, 3, tp_group=group),
            "trusted": collectives(target, 3, **trusted),
            "trusted, no tokens": collectives(target, 0, **trusted),
        },
        "poisoned": target.logprob_entropy(poisoned, torch.zeros(2, dtype=torch.int64), **trusted).log_probs,
    }
