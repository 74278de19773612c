"""Training steps written out with Hugging Face's model and PyTorch's AdamW, as the actor must take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.tiny import Answers, load, policy_loss, response_logits


@dataclass(frozen=True)
class Loop:
    """Weights by name after the last step, and each step's metrics."""

    weights: dict[str, Tensor]
    metrics: list[dict[str, float]]


def torch_loop(
    model_path: Path,
    answers: Answers,
    learning_rates: Sequence[float],
    dtype: torch.dtype = torch.float64,
    *,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    clip_grad: float = 1.0,
) -> Loop:
    """One step at each learning rate: gradients clipped, matrices but no vectors decayed, AdamW's eps 1e-6."""
    model = load(model_path, dtype)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=1e-6)
    metrics: list[dict] = []
    read = answers.learning  # the actor runs these alone
    for learning_rate in learning_rates:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss, log_probs, entropy = policy_loss(response_logits(model, answers.trajectories), answers)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
        delta = log_probs.detach() - answers.old_log_probs.to(dtype)
        metrics.append(
            {
                "actor/loss": float(loss),
                "actor/grad_norm": float(norm),
                "actor/lr": learning_rate,
                "actor/ratio": float(delta.exp()[read].mean()),
                "actor/entropy": float(entropy[read].mean()),
                "actor/approx_kl": float((torch.expm1(delta) - delta)[read].mean()),
                "actor/left_out": float((~read).double().mean()),
                **clip_fractions(delta.exp(), answers.advantages),
            }
        )
    return Loop({name: p.detach().double() for name, p in model.named_parameters()}, metrics)


def clip_fractions(ratio: Tensor, advantages: Tensor) -> dict[str, float]:
    """Share of tokens whose ratio is held at 1.2 (positive advantage) or 0.8 (negative)."""
    low = ((advantages < 0) & (ratio < 0.8)).double().mean()
    high = ((advantages > 0) & (ratio > 1.2)).double().mean()
    return {"actor/clip_fraction": float(low + high), "actor/clip_fraction_low": float(low)}
