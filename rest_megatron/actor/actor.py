"""The actor: log-probs, policy updates and supervised steps on a Megatron policy under DeepSpeed ZeRO."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rest_megatron.actor.head import Head
from rest_megatron.actor.initial import InitialWeights
from rest_megatron.actor.learning import learning
from rest_megatron.actor.losses import Losses
from rest_megatron.actor.microbatch import MicroBatch, micro_batches, tokens_to_run
from rest_megatron.actor.packing import pack_sequences
from rest_megatron.actor.prefixes import Node
from rest_megatron.actor.sums import POLICY_SUMS, SUPERVISED_SUMS, global_metrics
from rest_megatron.actor.zero import ZeroEngine
from rest_megatron.config.deepspeed import engine_config
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import Preempted
from rest_megatron.model.huggingface import WeightSource, export, load_weights
from rest_megatron.model.model import DTYPES, Policy
from rest_megatron.types import PolicyStreams, TokenStats, Trajectory


class Update(NamedTuple):
    """One optimizer step: global metrics, and log_probs [T] float32 before it, the old ones where none were read."""

    metrics: dict[str, float]
    log_probs: Tensor


class _LeftSchedule(Exception):
    """This copy of the model is to stop between two micro-batches."""


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
    ) -> None:
        self.config = config
        self.parallel = parallel
        self.model_path = Path(config.model.path)
        hf.dtype = DTYPES[config.model.dtype]
        self.policy = Policy(hf, config, parallel)
        load_weights(self.policy, weights, parallel)
        self.initial = InitialWeights(self.policy) if config.algorithm.kl_coef > 0 else None
        self.head = Head(self.policy, config, parallel)
        self.losses = Losses(self.head, config, parallel.dp_size)
        settings = engine_config(config, data_parallel_size=parallel.dp_size)
        self.zero = ZeroEngine(self.policy, config.optim, settings, total_steps, parallel)
        self.version = 0

    def log_probs(self, trajectories: Sequence[Trajectory]) -> TokenStats:
        """Statistics of this data-parallel rank's target tokens under the current weights, without gradient."""
        self.policy.eval()
        num_tokens = sum(t.num_targets for t in trajectories)
        stats = torch.zeros(len(TokenStats._fields), num_tokens, device=self.parallel.device)
        with torch.no_grad():
            for index, values in self.run(trajectories, self.losses.token_stats, forward_only=True):
                stats[:, index] = values
        return TokenStats(*self.parallel.broadcast_from_last_stage(stats))

    def ref_log_probs(self, trajectories: Sequence[Trajectory]) -> Tensor | None:
        """[T] float32: log-probs under the weights the actor started from; None without a KL term."""
        if self.initial is None:
            return None
        with self.initial.in_place_of(self.policy):
            return self.log_probs(trajectories).log_probs

    def update(
        self, trajectories: Sequence[Trajectory], streams: PolicyStreams, *, interruptible: bool = True
    ) -> Update:
        """One optimizer step of the weighted clipped loss; it does not depend on how the batch is cut.

        Answers that have no gradient are left out of it, with the same result. interruptible: see `run`; a step that
        is broken off changes nothing.
        """
        part = learning(trajectories, streams, self.config.algorithm.regularised)
        loss = partial(self.losses.policy, part.streams)
        metrics, kept = self._step(part.trajectories, loss, POLICY_SUMS, interruptible, part.left_out)
        read = torch.zeros_like(part.streams.old_log_probs)
        for index, values in kept:
            read[index] = values
        if self.config.algorithm.ratio == "token":  # whose kernels pass tokens of weight 0 over
            read = torch.where(part.streams.loss_weights == 0, part.streams.old_log_probs, read)
        log_probs = streams.old_log_probs.index_copy(0, part.places, read)
        return Update(metrics, self.parallel.broadcast_from_last_stage(log_probs))

    def update_on_policy(
        self, trajectories: Sequence[Trajectory], streams: PolicyStreams
    ) -> tuple[dict[str, float], TokenStats]:
        """One optimizer step by the weights that drew the answers, and the statistics of all their tokens before it.

        As `log_probs` and then `update` with them, in one forward pass less. streams: of `on_policy_loss`; left out is
        what has no gradient before its importance correction.
        """
        part = learning(trajectories, streams, self.config.algorithm.regularised)
        stats = torch.zeros(len(TokenStats._fields), len(streams.advantages), device=self.parallel.device)
        stats[:, part.other_places] = torch.stack(self.log_probs(part.others))
        loss = partial(self.losses.on_policy, part.streams)
        metrics, kept = self._step(part.trajectories, loss, POLICY_SUMS, True, part.left_out)
        for index, values in kept:
            stats[:, part.places[index]] = values
        return metrics, TokenStats(*self.parallel.broadcast_from_last_stage(stats))

    def skip(self, count: int) -> None:
        """Let the learning-rate schedule pass over `count` steps that are not taken."""
        self.zero.skip(count)

    def supervised_step(self, trajectories: Sequence[Trajectory], num_tokens_global: int) -> dict[str, float]:
        """One optimizer step on -log p, averaged over `num_tokens_global` target tokens of all ranks."""
        return self._step(trajectories, partial(self.losses.supervised, num_tokens_global), SUPERVISED_SUMS)[0]

    def export(self, directory: Path, chat_template: str | None = None) -> None:
        """Write the policy as a Hugging Face directory, with another chat template than the model's when given one."""
        export(self.policy, self.parallel, directory, self.model_path, chat_template)

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps beside masters and moments: the version of the weights, and the optimizer's steps."""
        return {"version": self.version, **self.zero.counters()}

    def restore(self, counters: dict[str, int]) -> None:
        """Resume where `counters` were read, after the masters and moments were set."""
        self.version = counters["version"]
        self.zero.restore(counters)

    def _step(
        self,
        trajectories: Sequence[Trajectory],
        loss: Callable[..., tuple],
        names: Sequence[str],
        interruptible: bool = True,
        left_out: Tensor | None = None,
    ) -> tuple[dict[str, float], list[tuple[Tensor, Tensor]]]:
        """(metrics, what the loss kept of each micro-batch, on the last stage); left_out: of `Learning`."""
        self.policy.train()
        self.zero.begin()
        results = self.run(trajectories, loss, forward_only=False, interruptible=interruptible)
        sums = [result[0] for result in results]
        grad_norm, learning_rate = self.zero.step(torch.stack(sums)[:, 0].sum() if sums else None)
        self.version += math.isfinite(grad_norm)
        metrics = global_metrics(sums, names, left_out, self.parallel)
        metrics |= {"actor/grad_norm": grad_norm, "actor/lr": learning_rate}
        return metrics, [result[1] for result in results]

    def run(
        self,
        trajectories: Sequence[Trajectory],
        compute: Callable[..., Any],
        forward_only: bool,
        interruptible: bool = True,
    ) -> list[Any]:
        """Megatron's schedule over the packed trajectories; what `compute` returned, on the last stage.

        compute: of a micro-batch and the hidden states [n, h] of the rows that predict its targets.
        interruptible: whether it raises Preempted, with nothing left accumulated, when a rank is to stop.
        """
        batches = self._micro_batches(trajectories)
        poll = self.parallel.poll if interruptible else self.parallel.watch.beat
        # A pipeline's stages are at different micro-batches, and wait for one another: none may leave the schedule.
        may_leave = interruptible and self.parallel.pp_size == 1
        try:
            poll()
            results = self._schedule(batches, compute, forward_only, may_leave)
            poll()
        except Preempted:
            self.zero.discard()
            raise
        return results

    def _schedule(
        self, batches: list[MicroBatch], compute: Callable[..., Any], forward_only: bool, may_leave: bool
    ) -> list[Any]:
        """See `run`. may_leave: whether it raises Preempted between two micro-batches, too."""
        parallel = self.parallel

        def forward_step(iterator: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable[..., Any]]:
            parallel.watch.beat()
            # Data-parallel ranks need not be at the same micro-batch either: they agree after the schedule.
            if may_leave and parallel.block_must_stop():
                raise _LeftSchedule
            batch = next(iterator)
            output = model(
                input_ids=batch.tokens, position_ids=None, attention_mask=None, packed_seq_params=batch.packed
            )
            return output, partial(self._compute, compute, batch)

        try:
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
        except _LeftSchedule:
            parallel.stop_together()

    def tokens_computed(self, trajectories: Sequence[Trajectory]) -> int:
        """Of one forward pass of this data-parallel rank, without padding: what trajectories share counts once."""
        return sum(root.tokens for bin in self._pack(trajectories)[1] for root in bin)

    def _pack(self, trajectories: Sequence[Trajectory]) -> tuple[list[list[int]], list[list[Node]]]:
        """`tokens_to_run` of each, and what each micro-batch holds of them."""
        sequences, train = [tokens_to_run(t) for t in trajectories], self.config.train
        targets = [t.num_targets for t in trajectories]
        size, pp_size = train.max_tokens_per_micro_batch, self.parallel.pp_size
        return sequences, pack_sequences(sequences, targets, size, train.shared_prefixes, pp_size)

    def _compute(self, compute: Callable[..., Any], batch: MicroBatch, output: Tensor, **how: Any) -> Any:
        return compute(batch, self.head.rows(output, batch.rows), **how)

    def _micro_batches(self, trajectories: Sequence[Trajectory]) -> list[MicroBatch]:
        """As many micro-batches as the fullest data-parallel rank needs; dummies fill up the others."""
        sequences, bins = self._pack(trajectories)
        count = torch.tensor(max(1, len(bins)), device=self.parallel.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=self.parallel.dp_group)
        # The interleaved schedule takes whole rounds of one micro-batch per pipeline rank.
        rounds = self.parallel.pp_size if self.parallel.num_chunks > 1 else 1
        total = -(-int(count) // rounds) * rounds
        bins += [[] for _ in range(total - len(bins))]
        sequence_parallel = self.config.parallel.sequence_parallel
        return micro_batches(
            trajectories,
            sequences,
            bins,
            multiple_of=self.parallel.tp_size if sequence_parallel else 1,
            same_length=self.parallel.pp_size > 1,
            device=self.parallel.device,
        )
