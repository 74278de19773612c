"""The step as a plain loop over Hugging Face's model takes it.

Answers side by side, padded on the right (causal attention never sees that, so it needs no mask), logits from the
last token of the shortest prompt on, gradients accumulated over the step, one fused AdamW step.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from .contestant import BETAS, CLIP_GRAD, CLIP_RATIO, LEARNING_RATE, WEIGHT_DECAY, Done
from .shapes import Answer, Step

IGNORED = -100


class Padded(NamedTuple):
    """A micro-batch: ids [answers, tokens]; labels [answers, kept - 1] of the last `kept` columns."""

    ids: Tensor
    labels: Tensor
    kept: int


class HuggingFace:
    """`transformers` with SDPA."""

    def __init__(self, model: Path, step: Step, at_once: int) -> None:
        self.model = Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )
        answers = step.answers
        self.batches = [_pad(answers[i : i + at_once]) for i in range(0, len(answers), at_once)]
        self.advantages = step.parts(step.advantages, at_once)
        self.weights = step.parts(step.loss_weights, at_once)
        self.embedding: nn.Module = self.model.get_input_embeddings()

    @torch.no_grad()
    def log_probs(self) -> list[Tensor]:
        """Of each micro-batch's sampled tokens."""
        return [self._log_probs(batch) for batch in self.batches]

    def update(self, old: list[Tensor] | None) -> Done:
        """One optimizer step; old: None for the log-probs of its own forward passes."""
        loss = 0.0
        for number, batch in enumerate(self.batches):
            log_probs = self._log_probs(batch)
            ratio = (log_probs - (log_probs.detach() if old is None else old[number])).exp()
            advantages = self.advantages[number]
            surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO) * advantages)
            part = -(self.weights[number] * surrogate).sum()
            part.backward()
            loss += float(part)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_GRAD)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Done(loss, float(norm))

    def _log_probs(self, batch: Padded) -> Tensor:
        logits = self.model(input_ids=batch.ids, use_cache=False, logits_to_keep=batch.kept).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="none")
        return -losses[batch.labels.flatten() != IGNORED]


def _pad(answers: list[Answer]) -> Padded:
    first = min(len(answer.prompt) for answer in answers) - 1
    whole = [torch.tensor(answer.prompt + answer.response) for answer in answers]
    sampled = [torch.tensor([False] * len(answer.prompt) + answer.mask) for answer in answers]
    labels = [ids.masked_fill(~own, IGNORED) for ids, own in zip(whole, sampled, strict=True)]
    ids = nn.utils.rnn.pad_sequence(whole, batch_first=True)
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return Padded(ids, padded[:, first + 1 :], ids.shape[1] - first)
