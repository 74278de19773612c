"""The work that every contestant does: one batch of a policy update at a given size."""

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rest_kernels import reference

from .registry import Contestant

TEMPERATURE = 0.7
CLIP_RATIO = 0.2
# The share of tokens with a loss weight, in the contestants that drop the others.
SPARSE = 0.25
SPARSE_NOTE = f"{SPARSE:.0%} of the tokens weigh"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Rows that are drawn or reduced at once while a batch is made, so that this needs little memory itself.
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Case:
    """A size of the workload. `hidden` is the width of the hidden states, at level "hidden" only."""

    level: str
    tokens: int
    vocab: int
    hidden: int | None
    entropy_coef: float
    dtype: str
    device: str

    def title(self) -> str:
        """One line for people."""
        width = "" if self.hidden is None else f" H={self.hidden}"
        entropy = "" if self.level == "statistics" else f" entropy_coef={self.entropy_coef:g}"
        return f"{self.level}: T={self.tokens}{width} V={self.vocab} {self.dtype}{entropy} on {self.device}"


@dataclass(frozen=True)
class Batch:
    """Tokens of `num_sequences` equally long sequences, one after the other.

    logits [T, V], or hidden [T, H] and weight [V, H]; labels [T] int64; the vectors are [T] float32. As in GRPO the
    advantage is one number per sequence, and the last token of a sequence predicts nothing, so its weight is 0.
    group: this rank alone.
    """

    logits: Tensor | None
    hidden: Tensor | None
    weight: Tensor | None
    labels: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    loss_weights: Tensor
    num_sequences: int
    entropy_coef: float
    group: dist.ProcessGroup | None
    temperature: float = TEMPERATURE
    clip_ratio: float = CLIP_RATIO

    def per_sequence(self, tensor: Tensor) -> Tensor:
        """[T, ...] seen as [sequences, tokens per sequence, ...]."""
        return tensor.view(self.num_sequences, -1, *tensor.shape[1:])


def make_batch(case: Case, fraction: float = 1.0, group: dist.ProcessGroup | None = None, seed: int = 0) -> Batch:
    """Random inputs: logits of standard deviation about 2, ratios on both sides of both clips."""
    torch.manual_seed(seed)
    dtype, device = DTYPES[case.dtype], case.device
    logits = hidden = weight = None
    if case.hidden is None:
        logits = torch.empty(case.tokens, case.vocab, dtype=dtype, device=device)
        for rows in logits.split(ROWS_AT_ONCE):
            rows.copy_(torch.randn(rows.shape, device=device) * 2)
    else:
        hidden = torch.randn(case.tokens, case.hidden, device=device).to(dtype).requires_grad_()
        scale = 2 / math.sqrt(case.hidden)
        weight = (torch.randn(case.vocab, case.hidden, device=device) * scale).to(dtype).requires_grad_()
    labels = torch.randint(case.vocab, (case.tokens,), device=device)
    num_sequences = math.gcd(case.tokens, 8)
    length = case.tokens // num_sequences
    loss_weights = (torch.rand(case.tokens, device=device) + 0.5) / case.tokens
    loss_weights[torch.rand(case.tokens, device=device) >= fraction] = 0
    loss_weights[length - 1 :: length] = 0
    noise = torch.randn(case.tokens, device=device) * 0.3
    return Batch(
        logits=logits,
        hidden=hidden,
        weight=weight,
        labels=labels,
        old_log_probs=_log_probs(logits, hidden, weight, labels) + noise,
        advantages=torch.randn(num_sequences, device=device).repeat_interleave(length),
        loss_weights=loss_weights,
        num_sequences=num_sequences,
        entropy_coef=case.entropy_coef,
        group=group,
    )


@torch.no_grad()
def _log_probs(logits: Tensor | None, hidden: Tensor | None, weight: Tensor | None, labels: Tensor) -> Tensor:
    parts = []
    for rows in torch.arange(len(labels), device=labels.device).split(ROWS_AT_ONCE):
        x = (logits[rows] if hidden is None else hidden[rows] @ weight.T).float()
        parts.append(reference.log_probs(x, labels[rows], TEMPERATURE))
    return torch.cat(parts)


def policy_loss(batch: Batch, log_probs: Tensor, entropy: Tensor | None = None) -> Tensor:
    """The loss of the workload in plain torch, for contestants that stop at log-probs: no fusing, no tricks."""
    ratio = (log_probs.float() - batch.old_log_probs).exp()
    clipped = ratio.clamp(1 - batch.clip_ratio, 1 + batch.clip_ratio)
    loss = torch.maximum(-batch.advantages * ratio, -batch.advantages * clipped)
    if batch.entropy_coef != 0:
        loss = loss - batch.entropy_coef * entropy
    return (batch.loss_weights * loss).sum()


class _ModelOutput(torch.autograd.Function):
    """Hands logits over as a model does: not a leaf of the graph, so that they may be changed in place."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, logits: Tensor, sink: list[Tensor]) -> Tensor:
        ctx.sink = sink
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.sink.append(grad)
        return None, None, None


def work(contestant: Contestant, modules: list[ModuleType], batch: Batch) -> list[Tensor]:
    """One forward and backward pass: the gradients, or at level "statistics" the results. May change the logits."""
    if contestant.level == "statistics":
        with torch.no_grad():
            return list(contestant.function(batch, *modules))
    if batch.logits is None:
        loss = contestant.function(batch, *modules)
        return [] if loss is None else list(torch.autograd.grad(loss, (batch.hidden, batch.weight)))
    gradients: list[Tensor] = []
    trigger = torch.zeros((), device=batch.logits.device, requires_grad=True)
    loss = contestant.function(replace(batch, logits=_ModelOutput.apply(trigger, batch.logits, gradients)), *modules)
    loss.backward()
    return gradients


def exact_work(level: str, batch: Batch) -> list[Tensor]:
    """What `work` should return, in float64 by autograd on the specification."""
    if batch.logits is None:
        inputs = [tensor.detach().double().requires_grad_() for tensor in (batch.hidden, batch.weight)]
        logits = inputs[0] @ inputs[1].T
    else:
        logits = batch.logits.double().requires_grad_()
        inputs = [logits]
    if level == "statistics":
        log_probs = reference.log_probs(logits, batch.labels, batch.temperature)
        return [log_probs.detach(), reference.entropy(logits, batch.temperature).detach()]
    loss = reference.ppo_loss(
        logits,
        batch.labels,
        batch.old_log_probs.double(),
        batch.advantages.double(),
        batch.loss_weights.double(),
        clip_ratio_low=batch.clip_ratio,
        clip_ratio_high=batch.clip_ratio,
        entropy_coef=batch.entropy_coef,
        temperature=batch.temperature,
    )
    return list(torch.autograd.grad(loss, inputs))


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest |found - exact| over the largest |exact|, the worst of the tensors; inf where anything is not
    finite or a tensor is missing.
    """
    if len(found) != len(exact):
        return math.inf
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True)]
    return max(error if math.isfinite(error) else math.inf for error in errors)
