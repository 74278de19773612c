"""The actor: log-probs, policy updates and supervised steps on a Megatron policy under DeepSpeed ZeRO."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from transformers import PreTrainedConfig

from rest_megatron.actor.head import Head
from rest_megatron.actor.microbatch import MicroBatch, Trajectory, micro_batches, pack
from rest_megatron.actor.model import DTYPES, Policy
from rest_megatron.actor.parallel import Parallel
from rest_megatron.actor.zero import ZeroEngine
from rest_megatron.checkpoint.hf import WeightSource, export, load_weights
from rest_megatron.config.deepspeed import engine_config
from rest_megatron.config.schema import Config

POLICY_SUMS = ("loss", "num_tokens", "clip_fraction", "clip_fraction_low", "approx_kl", "ratio", "entropy")
SUPERVISED_SUMS = ("loss", "num_tokens")
_KERNEL_NAMES = {"clip_fraction": "clipped", "clip_fraction_low": "clipped_low"}


class TokenStats(NamedTuple):
    """Flat float32 vectors over response tokens: log-prob of the sampled token, entropy, collision (sum p^2)."""

    log_probs: Tensor
    entropy: Tensor
    collision: Tensor


class Actor:
    """Owns the weights, the optimizer and the schedule. Every method is collective over all ranks.

    Args:
        config: the run; `model`, `optim`, `algorithm`, `kernels`, `deepspeed`, `megatron` are read here.
        hf: the model's Hugging Face configuration.
        weights: what to start from.
        parallel: this rank's place.
        total_steps: optimizer steps of the whole run, for the learning-rate schedule.
    """

    def __init__(
        self, config: Config, hf: PreTrainedConfig, weights: WeightSource, parallel: Parallel, total_steps: int
    ):
        self.config = config
        self.parallel = parallel
        self.model_path = Path(config.model.path)
        hf.dtype = DTYPES[config.model.dtype]
        self.policy = Policy(hf, config, parallel)
        load_weights(self.policy, weights, parallel)
        self.head = Head(self.policy, config, parallel)
        settings = engine_config(config, data_parallel_size=parallel.dp_size)
        self.zero = ZeroEngine(self.policy, config.optim, settings, total_steps, parallel)
        self.version = 0

    def log_probs(self, trajectories: Sequence[Trajectory]) -> TokenStats:
        """Statistics of this data-parallel rank's response tokens under the current weights, without gradient."""
        self.policy.eval()
        num_tokens = sum(len(t.response_ids) for t in trajectories)
        stats = torch.zeros(3, num_tokens, device=self.parallel.device)
        with torch.no_grad():
            for index, values in self._run(trajectories, self._token_stats, forward_only=True):
                stats[:, index] = values
        return TokenStats(*self.parallel.broadcast_from_last_stage(stats))

    def update(
        self, trajectories: Sequence[Trajectory], old_log_probs: Tensor, advantages: Tensor, loss_weights: Tensor
    ) -> dict[str, float]:
        """One optimizer step of the weighted clipped loss.

        The three vectors are float32 over this rank's response tokens. `loss_weights` already hold mask, token weight
        and the GLOBAL normaliser, so the step does not depend on how the batch is cut. Returns global metrics.
        """
        streams = torch.stack([old_log_probs, advantages, loss_weights])
        return self._step(trajectories, partial(self._policy_loss, streams), POLICY_SUMS)

    def supervised_step(self, trajectories: Sequence[Trajectory], num_tokens_global: int) -> dict[str, float]:
        """One optimizer step on -log p, averaged over `num_tokens_global` response tokens of all ranks."""
        return self._step(trajectories, partial(self._supervised_loss, num_tokens_global), SUPERVISED_SUMS)

    def export(self, directory: Path) -> None:
        """Write the policy as a Hugging Face directory."""
        export(self.policy, self.parallel, directory, self.model_path)

    def _step(self, trajectories, loss: Callable, names: Sequence[str]) -> dict[str, float]:
        self.policy.train()
        self.zero.begin()
        sums = self._run(trajectories, loss, forward_only=False)
        grad_norm, learning_rate = self.zero.step(torch.stack(sums)[:, 0].sum() if sums else None)
        self.version += math.isfinite(grad_norm)
        return {**self._global_metrics(sums, names), "actor/grad_norm": grad_norm, "actor/lr": learning_rate}

    def _run(self, trajectories, compute: Callable, forward_only: bool) -> list:
        """Megatron's schedule over the packed trajectories; what `compute` returned, on the last stage."""
        batches = self._micro_batches(trajectories)

        def forward_step(iterator, model):
            batch = next(iterator)
            output = model(
                input_ids=batch.tokens, position_ids=None, attention_mask=None, packed_seq_params=batch.packed
            )
            return output, partial(compute, batch)

        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in self.zero.chunks],
            model=self.zero.chunks,
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.shape[1],
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )

    def _micro_batches(self, trajectories: Sequence[Trajectory]) -> list[MicroBatch]:
        """As many micro-batches as the fullest data-parallel rank needs; dummies fill up the others."""
        bins = pack([t.length for t in trajectories], self.config.train.max_tokens_per_micro_batch)
        count = torch.tensor(max(1, len(bins)), device=self.parallel.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=self.parallel.dp_group)
        # The interleaved schedule takes whole rounds of one micro-batch per pipeline rank.
        rounds = self.parallel.pp_size if self.parallel.num_chunks > 1 else 1
        total = -(-int(count) // rounds) * rounds
        bins += [[] for _ in range(total - len(bins))]
        sequence_parallel = self.config.parallel.sequence_parallel
        return micro_batches(
            trajectories,
            bins,
            multiple_of=self.parallel.tp_size if sequence_parallel else 1,
            same_length=self.parallel.pp_size > 1,
            device=self.parallel.device,
        )

    def _token_stats(self, batch: MicroBatch, output: Tensor, non_loss_data: bool = True) -> tuple[Tensor, Tensor]:
        out = self.head.token_stats(output, batch.labels, self.config.rollout.temperature, collision=True)
        return batch.index, torch.stack([out.log_probs, out.entropy, out.collision])[:, batch.rows]

    def _policy_loss(self, streams: Tensor, batch: MicroBatch, output: Tensor):
        vectors = (batch.spread(stream) for stream in streams)
        out = self.head.policy_loss(output, batch.labels, self.config.rollout.temperature, *vectors)
        metrics = {"loss": out.loss, **out.metrics}
        return self._for_schedule(out.loss, batch, [metrics[_KERNEL_NAMES.get(name, name)] for name in POLICY_SUMS])

    def _supervised_loss(self, num_tokens_global: int, batch: MicroBatch, output: Tensor):
        out = self.head.token_stats(output, batch.labels, temperature=1.0, collision=False)
        loss = -out.log_probs.sum() / num_tokens_global
        return self._for_schedule(loss, batch, [loss, torch.tensor(batch.rows.shape[0], device=loss.device)])

    def _for_schedule(self, loss: Tensor, batch: MicroBatch, sums: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Megatron's (loss, token count, data to keep).

        DeepSpeed averages gradients over data-parallel ranks; ours is a sum over them, hence the factor.
        """
        count = torch.tensor(batch.rows.shape[0], dtype=torch.int, device=loss.device)
        return loss * self.parallel.dp_size, count, torch.stack([x.detach().double() for x in sums])

    def _global_metrics(self, sums: list[Tensor], names: Sequence[str]) -> dict[str, float]:
        """Sums [len(names)] of each micro-batch on the last stage -> global means per token, on every rank."""
        totals = torch.stack(sums).sum(0) if sums else torch.zeros(len(names), dtype=torch.float64)
        totals = totals.to(self.parallel.device)
        if self.parallel.is_last_stage:
            dist.all_reduce(totals, group=self.parallel.dp_group)
        values = dict(zip(names, self.parallel.broadcast_from_last_stage(totals).tolist(), strict=True))
        loss, tokens = values.pop("loss"), max(1.0, values.pop("num_tokens"))
        return {"actor/loss": loss, **{f"actor/{name}": value / tokens for name, value in values.items()}}
