"""The step as TRL's GRPOTrainer takes it, from its own code; runs where `trl` is installed.

Its generation is left out: the trainer is given what it would have made of sampled answers (prompts padded on the left,
answers on the right, both to the longest of the step), and its own functions give log-probs, loss and gradients. Token
weights go in as advantages of single tokens, which its loss allows.
"""

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils

from .arms import Arm
from .contestant import BETAS, CLIP_GRAD, CLIP_RATIO, LEARNING_RATE, WEIGHT_DECAY, Done
from .shapes import Step


class Trl:
    """GRPOTrainer with loss_type "dapo", a sum over tokens, whose normaliser is 1 here: the weights hold it."""

    def __init__(self, arm: Arm, model: Path, step: Step, at_once: int) -> None:
        if arm.scored_rows:
            utils._use_triton = lambda device: True  # which positions the head takes; the kernels ask for themselves
        self.trainer = _trainer(model, step, at_once)
        self.trainer.model.train()
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        self.at_once = at_once
        self.inputs = _inputs(step)
        self.embedding: nn.Module = self.trainer.model.get_input_embeddings()

    @torch.no_grad()
    def log_probs(self) -> Tensor:
        """[answers, tokens of the longest response]."""
        ids, mask = (
            torch.cat([self.inputs[f"prompt_{what}"], self.inputs[f"completion_{what}"]], dim=1)
            for what in ("ids", "mask")
        )
        kept = self.inputs["completion_ids"].shape[1]
        scored = self.trainer._get_per_token_logps_and_entropies(
            self.trainer.model, ids, mask, kept, batch_size=self.at_once
        )
        return scored[0]

    def update(self, old: Tensor | None) -> Done:
        """One optimizer step; without `old` as the trainer does by default, when it updates once per generation."""
        inputs = self.inputs if old is None else self.inputs | {"old_per_token_logps": old}
        trainer, loss = self.trainer, 0.0
        for start in range(0, len(inputs["prompt_ids"]), self.at_once):
            own = {name: value[start : start + self.at_once] for name, value in inputs.items()}
            part = trainer.compute_loss(trainer.model, own | {"num_items_in_batch": torch.tensor(1.0)})
            trainer.accelerator.backward(part)
            loss += float(part)
        norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), CLIP_GRAD)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return Done(loss, float(norm))


def _trainer(model: Path, step: Step, at_once: int) -> GRPOTrainer:
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=len(step.answers) // at_once,
        num_generations=2,
        gradient_checkpointing=False,
        loss_type="dapo",
        beta=0.0,
        epsilon=CLIP_RATIO,
        temperature=1.0,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        report_to="none",
    )
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return GRPOTrainer(
        Qwen3ForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [""]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )


def _inputs(step: Step) -> dict[str, Tensor]:
    """What `_generate_and_score_completions` returns; the advantages are those of tokens, times their weights."""
    prompts = [torch.tensor(answer.prompt) for answer in step.answers]
    responses = [torch.tensor(answer.response) for answer in step.answers]
    sampled = _padded([torch.tensor(answer.mask) for answer in step.answers], "right")
    advantages = torch.zeros(sampled.shape).masked_scatter_(sampled, step.advantages * step.loss_weights)
    return {
        "prompt_ids": _padded(prompts, "left"),
        "prompt_mask": _padded([torch.ones_like(ids) for ids in prompts], "left"),
        "completion_ids": _padded(responses, "right"),
        "completion_mask": _padded([torch.ones_like(ids) for ids in responses], "right"),
        "tool_mask": sampled.long(),
        "advantages": advantages,
    }


def _padded(rows: list[Tensor], side: str) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
