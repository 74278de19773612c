"""The step as our actor takes it, in one process."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from rest_megatron.actor.actor import Actor
from rest_megatron.config.schema import (
    AlgorithmConfig,
    Config,
    KernelsConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from rest_megatron.distributed.launch import Launch, free_port
from rest_megatron.distributed.startup import initialize
from rest_megatron.model.huggingface import weight_source
from rest_megatron.types import PolicyStreams, Trajectory

from .arms import Arm
from .contestant import BETAS, CLIP_GRAD, CLIP_RATIO, LEARNING_RATE, WEIGHT_DECAY, Done
from .shapes import Step


class Ours:
    """The actor. Packs hold `capacity` tokens."""

    def __init__(self, arm: Arm, model: Path, step: Step, capacity: int) -> None:
        config = _config(arm, model, capacity)
        launch = Launch(0, 1, 0, 1, "127.0.0.1", free_port(), "single")
        parallel = initialize(launch, ParallelConfig(), torch.device("cpu"), seed=0)
        hf = AutoConfig.from_pretrained(model)
        self.actor = Actor(config, hf, weight_source(config.model, 0, hf), parallel, total_steps=1000)
        self.trajectories = [Trajectory(*answer) for answer in step.answers]
        self.streams = PolicyStreams(torch.zeros_like(step.advantages), step.advantages, step.loss_weights)
        self.embedding: nn.Module = self.actor.policy.chunks[0].embedding.word_embeddings

    def log_probs(self) -> Tensor:
        """[sampled tokens], with entropy and collision beside them, which the token weights need."""
        return self.actor.log_probs(self.trajectories).log_probs

    def update(self, old: Tensor | None) -> Done:
        """One optimizer step."""
        if old is None:
            engine = torch.zeros_like(self.streams.advantages)
            metrics, _ = self.actor.update_on_policy(self.trajectories, self.streams._replace(old_log_probs=engine))
        else:
            metrics = self.actor.update(self.trajectories, self.streams._replace(old_log_probs=old)).metrics
        return Done(metrics["actor/loss"], metrics["actor/grad_norm"])


def _config(arm: Arm, model: Path, capacity: int) -> Config:
    return Config(
        run=RunConfig(device="cpu"),
        model=ModelConfig(path=str(model), dtype="float32"),
        kernels=KernelsConfig(level=arm.level),
        algorithm=AlgorithmConfig(
            clip_ratio_low=CLIP_RATIO, clip_ratio_high=CLIP_RATIO, importance_cap=None, importance_mask=None
        ),
        optim=OptimConfig(lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, clip_grad=CLIP_GRAD),
        train=TrainConfig(max_tokens_per_micro_batch=capacity, shared_prefixes=arm.shared),
    )
