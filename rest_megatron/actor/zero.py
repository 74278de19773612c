"""DeepSpeed ZeRO around a Megatron policy.

"Boundary mode": Megatron's schedule runs every micro-batch while the engine only accumulates; then the replicated
gradients are summed, and one reduction and one step follow. Nothing is communicated inside the schedule.
"""

import io
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

from rest_megatron.actor.gradients import (
    copy_tied_embedding,
    mark_tied_copy,
    spoil_unless_finite,
    sum_replicated_gradients,
)
from rest_megatron.actor.optimizer_state import adam_step, set_adam_step
from rest_megatron.config.schema import OptimConfig
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.model import Policy
from rest_megatron.utils.libraries import has_apex


class ModelParallelUnit:
    """Megatron's groups as DeepSpeed asks for them: its "model parallel" group is TP x PP, not TP alone."""

    def __init__(self, parallel: Parallel) -> None:
        self.parallel = parallel

    def get_model_parallel_rank(self) -> int:
        """Rank within TP x PP."""
        return self.parallel.pp_rank * self.parallel.tp_size + self.parallel.tp_rank

    def get_model_parallel_world_size(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.parallel.tp_size * self.parallel.pp_size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """The group of those ranks."""
        return parallel_state.get_model_parallel_group()

    def get_tensor_model_parallel_rank(self) -> int:
        """Rank within TP."""
        return self.parallel.tp_rank

    def get_tensor_model_parallel_world_size(self) -> int:
        """TP."""
        return self.parallel.tp_size

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        """The group of TP."""
        return self.parallel.tp_group

    def get_pipeline_model_parallel_rank(self) -> int:
        """Rank within PP."""
        return self.parallel.pp_rank

    def get_pipeline_model_parallel_world_size(self) -> int:
        """PP."""
        return self.parallel.pp_size

    def get_pipeline_model_parallel_group(self) -> dist.ProcessGroup:
        """The group of PP."""
        return self.parallel.pp_group

    def get_data_parallel_rank(self) -> int:
        """Rank within DP."""
        return self.parallel.dp_rank

    def get_data_parallel_world_size(self) -> int:
        """DP."""
        return self.parallel.dp_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """The group of DP."""
        return self.parallel.dp_group


def parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW groups: matrices decay, norms and biases do not."""
    matrices = [p for p in policy.parameters() if p.dim() > 1]
    vectors = [p for p in policy.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def build_optimizer(policy: nn.Module, optim: OptimConfig, on_cuda: bool) -> torch.optim.Optimizer:
    """AdamW: Apex's fused one where it can run, else PyTorch's fused one.

    on_cuda: whether the optimizer state is on CUDA, where Apex's kernels need it; offloaded state is not.
    """
    groups = parameter_groups(policy, optim.weight_decay)
    settings: dict[str, Any] = {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps}
    if on_cuda and has_apex():
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def learning_rate_factor(optim: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """Learning rate over its peak, as a function of finished optimizer steps."""

    def factor(step: int) -> float:
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        if optim.schedule == "constant":
            return 1.0
        done = min(1.0, (step - optim.warmup_steps) / max(1, total_steps - optim.warmup_steps))
        shape = 1.0 - done if optim.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return optim.min_lr_ratio + (1.0 - optim.min_lr_ratio) * shape

    return factor


class ZeroEngine:
    """A DeepSpeed engine in boundary mode.

    `chunks` are what Megatron's schedule drives; `step` closes an accumulation that the schedule has filled.
    """

    def __init__(
        self, policy: Policy, optim: OptimConfig, engine_config: dict[str, Any], total_steps: int, parallel: Parallel
    ) -> None:
        mark_tied_copy(policy, parallel)
        offload = engine_config["zero_optimization"].get("offload_optimizer") or {}
        on_cuda = parallel.device.type == "cuda" and offload.get("device", "none") == "none"
        optimizer = build_optimizer(policy, optim, on_cuda)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(optim, total_steps))
        # DeepSpeed prints memory readings while it builds its bf16 optimizer.
        with redirect_stdout(io.StringIO()):
            self.engine, self.optimizer, _, self.scheduler = deepspeed.initialize(
                model=policy,
                optimizer=optimizer,
                lr_scheduler=scheduler,
                mpu=ModelParallelUnit(parallel),
                config=engine_config,
                dist_init_required=False,
            )
        self.policy = policy
        self.parallel = parallel
        self.chunks = [ScheduledChunk(self.engine, policy, i) for i in range(len(policy.chunks))]

    def begin(self) -> None:
        """Accumulate only, until `step`."""
        self.engine.set_gradient_accumulation_boundary(False)

    def reduce(self) -> None:
        """Sum replicated gradients over TP and PP, then average everything over data-parallel ranks."""
        sum_replicated_gradients(self.policy, self.optimizer, self.parallel)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.allreduce_gradients()

    def skip(self, count: int) -> None:
        """Advance the learning-rate schedule over `count` steps that are not taken."""
        for _ in range(count):
            self.scheduler.step()

    def discard(self) -> None:
        """Forget what the schedule has accumulated since `begin`, instead of stepping."""
        self.optimizer.zero_grad()

    def step(self, loss: torch.Tensor | None) -> tuple[float, float]:
        """Reduce, clip, update, advance the schedule.

        loss: this rank's share of the loss, 0-dim, on the last stage; None before it.
        Returns (global gradient norm before clipping, learning rate used). A non-finite loss or norm changes no
        weight, does not advance the schedule, and comes back as a norm of inf.
        """
        learning_rate = self.scheduler.get_last_lr()[0]
        if loss is not None:
            spoil_unless_finite(self.policy, self.optimizer, loss)
        self.reduce()
        self.engine.step()
        copy_tied_embedding(self.policy, self.parallel)
        grad_norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(grad_norm):
            self._discard_reduced_gradients()
        return grad_norm, learning_rate

    def counters(self) -> dict[str, int]:
        """Updates the moments have seen ("adam_step"), and steps the learning rate has taken ("schedule_step")."""
        return {"adam_step": adam_step(self.optimizer), "schedule_step": self.scheduler.last_epoch}

    def restore(self, counters: dict[str, int]) -> None:
        """Resume where `counters` were read, with the working weights those of the masters. Collective."""
        set_adam_step(self.optimizer, counters["adam_step"])
        step, scheduler = counters["schedule_step"], self.scheduler
        scheduler.last_epoch, scheduler._step_count = step, step + 1
        rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
        self.optimizer.update_lp_params()

    def _discard_reduced_gradients(self) -> None:
        """After a skipped step DeepSpeed keeps offloaded bf16 gradients and would add the next step's to them."""
        reduced = getattr(self.optimizer, "averaged_gradients", {})
        for group in reduced:
            reduced[group] = None


class ScheduledChunk(nn.Module):
    """One model chunk as Megatron's schedule sees a model; its forward goes through the DeepSpeed engine."""

    def __init__(self, engine: nn.Module, policy: Policy, index: int) -> None:
        super().__init__()
        chunk = policy.chunks[index]
        # A partial is no submodule: the parameters stay the engine's alone.
        self.run = partial(engine, index)
        self.config = policy.megatron
        self.model_type = chunk.model_type
        self.vp_stage = chunk.vp_stage
        self.set_input_tensor = chunk.set_input_tensor

    def forward(self, **kwargs: Any) -> torch.Tensor:
        """Hidden states for the next stage, or for the head."""
        return self.run(**kwargs)
