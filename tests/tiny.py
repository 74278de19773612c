"""Tiny Hugging Face models, ragged answers and Hugging Face's own numbers for them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rest_megatron.types import PolicyStreams, Trajectory

VOCAB = 500
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
# Of models that are smaller still, for whole runs; a vocabulary and positions are to be added.
SMALLEST_QWEN3 = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=4,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make_model(directory: Path, family: str = "qwen3", tied: bool = False, dtype=torch.float32) -> Path:
    """Save a tiny random model whose norms and biases are not trivial, so that a missed one shows."""
    config = {
        "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=tied),
        "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=tied),
        "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=tied, rope_parameters=LLAMA3_ROPE),
    }[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.06 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Answers:
    """Ragged trajectories and one value per response token of each loss stream."""

    trajectories: list[Trajectory]
    old_log_probs: Tensor
    advantages: Tensor
    loss_weights: Tensor

    def __iter__(self):
        """The arguments of `Actor.update`, in its order."""
        return iter((self.trajectories, self.streams))

    @property
    def streams(self) -> PolicyStreams:
        """What the policy loss reads besides tokens."""
        return PolicyStreams(self.old_log_probs, self.advantages, self.loss_weights)

    @property
    def learning(self) -> Tensor:
        """bool, of each token: whether its answer has an advantage, and so a gradient."""
        parts = self.advantages.split([t.num_targets for t in self.trajectories])
        return torch.cat([(part != 0).any().expand(len(part)) for part in parts])

    def to(self, device: torch.device) -> "Answers":
        """The same with its values on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in PolicyStreams._fields[:3]})

    def select(self, sequences: list[int]) -> "Answers":
        """Some of the trajectories, in this order, with their values."""
        starts = torch.tensor([0] + [t.num_targets for t in self.trajectories]).cumsum(0).tolist()
        index = torch.tensor([k for i in sequences for k in range(starts[i], starts[i + 1])], dtype=torch.int64)
        return Answers(
            [self.trajectories[i] for i in sequences],
            self.old_log_probs[index],
            self.advantages[index],
            self.loss_weights[index],
        )


def make_answers(count: int = 16, seed: int = 1, masked: bool = False, shared: bool = False) -> Answers:
    """Prompts of 3-12 and responses of 1-20 tokens; old log-probs near a uniform policy's.

    masked: the second third of each response is no target, and the second trajectory has none at all. shared: they are
    groups with a prompt each; in a group of three or more one answer begins as another does, and two are equal. The
    last answer has advantage 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    trajectories = [
        Trajectory(*(torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in (draw(3, 12), draw(1, 20))))
        for _ in range(count)
    ]
    if shared:
        trajectories = [own for first in range(0, count, 5) for own in _group(trajectories[first : first + 5])]
    if masked:
        trajectories = [t._replace(response_mask=_middle(len(t.response_ids))) for t in trajectories]
        trajectories[1] = trajectories[1]._replace(response_mask=[False] * len(trajectories[1].response_ids))
    lengths = [t.num_targets for t in trajectories]
    tokens = sum(lengths)
    old_log_probs, advantages = (
        -6.2 + 0.8 * torch.randn(tokens, generator=generator),
        torch.randn(tokens, generator=generator),
    )
    if shared:
        advantages *= 2  # so that the first gradient is clipped
        advantages[-lengths[-1] :] = 0
    return Answers(
        trajectories,
        old_log_probs=old_log_probs,
        advantages=advantages,
        loss_weights=torch.rand(tokens, generator=generator) / tokens,
    )


def _group(alone: list[Trajectory]) -> list[Trajectory]:
    group = [t._replace(prompt_ids=alone[0].prompt_ids) for t in alone]
    if len(group) > 2:
        longest = max(group, key=lambda t: t.length).response_ids
        response = [*longest[: len(longest) // 2], *group[0].response_ids]
        group[0] = group[0]._replace(response_ids=response[: len(longest)])
        group[-1] = group[1]
    return group


def _middle(length: int) -> list[bool]:
    return [not length // 3 <= i < 2 * length // 3 for i in range(length)]


@dataclass(frozen=True)
class Oracle:
    """Hugging Face in one precision: logits and statistics of response tokens, the loss's gradients, their norm."""

    logits: Tensor
    log_probs: Tensor
    entropy: Tensor
    collision: Tensor
    gradients: dict[str, Tensor]
    grad_norm: float


def response_logits(model, trajectories) -> Tensor:
    """Logits [tokens, vocab] that predict the target tokens, one sequence at a time; bf16 ones widened to fp32."""
    logits = []
    for prompt, response, mask in trajectories:
        out = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        out = out[torch.tensor(mask or [True] * len(response))]
        logits.append(out.float() if out.dtype == torch.bfloat16 else out)
    return torch.cat(logits)


def policy_loss(logits: Tensor, answers: Answers, clip: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted clipped loss written out with autograd, independent of the product's kernels.

    Returns the loss, and log-probs and entropies of the response tokens.
    """
    table = logits.log_softmax(-1)
    labels = torch.tensor([t.response_ids[i] for t in answers.trajectories for i in t.target_positions])
    log_probs = table.gather(1, labels.unsqueeze(1)).squeeze(1)
    ratio = (log_probs - answers.old_log_probs.to(log_probs.dtype)).exp()
    advantages = answers.advantages.to(log_probs.dtype)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -(answers.loss_weights.to(log_probs.dtype) * surrogate).sum(), log_probs, -(table.exp() * table).sum(-1)


def load(model_path: Path, dtype: torch.dtype):
    """Hugging Face's own model."""
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation="eager")


def oracle(model_path: Path, answers: Answers, dtype=torch.float64) -> Oracle:
    """Hugging Face's numbers for these answers."""
    model = load(model_path, dtype)
    logits = response_logits(model, answers.trajectories)
    loss, log_probs, entropy = policy_loss(logits, answers)
    loss.backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters()}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    return Oracle(
        logits.detach().double(),
        log_probs.detach().double(),
        entropy.detach().double(),
        logits.detach().softmax(-1).square().sum(-1).double(),
        gradients,
        float(norm),
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    """max |d| / max |reference|."""
    return float((value.double() - reference.double()).abs().max() / reference.double().abs().max())
