"""What the gloo workers run to test importance correction: its gradient, its mini-batches, its metrics."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from rest_megatron.actor.actor import Actor, Update
from rest_megatron.actor.dealing import deal_costs
from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.config.schema import ParallelConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.distributed.startup import choose_device, initialize
from rest_megatron.method.weights import WeightState
from rest_megatron.observe.mismatch import mismatch_metrics
from rest_megatron.step.update import update
from rest_megatron.step.weigh import StepWeights, importance
from rest_megatron.types import Batch, MiniBatch, TokenStats
from tests.distributed.cases import Layout, make_config, named, share, start
from tests.tiny import Answers


@dataclass
class GradientOnly:
    """An actor whose updates end before the optimizer: it keeps the gradient."""

    actor: Actor
    parallel: Parallel
    gradients: dict = field(default_factory=dict)

    def ref_log_probs(self, trajectories) -> None:
        """No KL term."""

    def skip(self, count: int) -> None:
        """No learning-rate schedule."""

    def update(self, trajectories, streams, interruptible: bool) -> Update:
        actor = self.actor
        actor.policy.train()
        actor.zero.begin()
        actor.run(trajectories, partial(actor.losses.policy, streams), forward_only=False)
        actor.zero.reduce()
        self.gradients = named(actor, self.parallel, safe_get_full_grad)
        return Update({"actor/grad_norm": 1.0}, torch.zeros_like(streams.old_log_probs))


def make_batch(answers: Answers, rollout_log_probs: Tensor, mini_batches: list[MiniBatch]) -> Batch:
    """A batch of these answers, which need no regions."""
    lengths = torch.tensor([len(t.response_ids) for t in answers.trajectories])
    sequence_index = torch.arange(len(lengths)).repeat_interleave(lengths)
    count = list(range(len(lengths)))
    regions = torch.zeros_like(sequence_index)
    return Batch(
        answers.trajectories,
        count,
        count,
        len(count),
        answers.advantages,
        regions,
        sequence_index,
        rollout_log_probs,
        mini_batches,
    )


def make_session(config, parallel: Parallel, actor) -> SimpleNamespace:
    """What an update needs of a session; two skipped updates in a row would end it."""
    config = replace(config, train=replace(config.train, max_nonfinite=1))
    return SimpleNamespace(config=config, parallel=parallel, actor=actor, run_dir=Path(tempfile.mkdtemp()))


def updated(
    session: SimpleNamespace, batch: Batch, old_log_probs: Tensor, tokens: Tensor
) -> tuple[StepWeights, Update]:
    """The first step's weights, `tokens` with their importance, and its updates."""
    algorithm, empty = session.config.algorithm, torch.zeros_like(tokens)
    weights = StepWeights(tokens, {}, WeightState(), importance(batch, old_log_probs, algorithm))
    old = TokenStats(old_log_probs, empty, empty, empty)
    return weights, update(
        session, None, batch, old, weights, SimpleNamespace(step=0, skipped=0, weights=WeightState())
    )


def corrected_gradient(
    launch: Launch, model: Path, layout: Layout, answers: Answers, rollout_log_probs: Tensor, algorithm: dict
) -> dict:
    """The gradient of the first update on answers that an engine drew with these log-probs.

    The answers' loss weights are their token weights, their old log-probs the actor's before the update.
    """
    config = make_config(model, layout)
    config = replace(config, algorithm=replace(config.algorithm, **algorithm))
    actor, parallel = start(launch, config)
    ours, mine = share(answers, parallel)
    engine = replace(answers, old_log_probs=rollout_log_probs).select(mine).old_log_probs
    whole = MiniBatch(slice(0, len(mine)), slice(0, len(engine)), len(answers.trajectories))
    batch = make_batch(ours, engine, [whole])
    recorder = GradientOnly(actor, parallel)
    updated(make_session(config, parallel, recorder), batch, ours.old_log_probs, ours.loss_weights)
    return {"gradients": recorder.gradients}


def masked_mini_batch(launch: Launch, model: Path, layout: Layout, answers: Answers) -> dict:
    """Two mini-batches, all answers of the first far from the engine's: what the updates leave behind."""
    config = make_config(model, layout)
    actor, parallel = start(launch, config)
    ours, _ = share(answers, parallel)
    first = len(ours.trajectories) // 2
    cut = sum(len(t.response_ids) for t in ours.trajectories[:first])
    old = actor.log_probs(ours.trajectories).log_probs
    engine = old.clone()
    engine[:cut] += 3.0
    half = len(answers.trajectories) // 2
    parts = [MiniBatch(slice(0, first), slice(0, cut), half)]
    parts.append(MiniBatch(slice(first, len(ours.trajectories)), slice(cut, len(old)), half))
    batch = make_batch(ours, engine, parts)
    weights, done = updated(make_session(config, parallel, actor), batch, old, ours.loss_weights)
    return {
        "old": old,
        "log_probs": done.log_probs,
        "cut": cut,
        "version": actor.version,
        "importance": weights.importance,
        "corrected": weights.corrected,
        "metrics": done.metrics,
    }


def spoiled(launch: Launch, model: Path, layout: Layout, answers: Answers, weight: float) -> int:
    """Optimizer steps that come of a batch in which the actor's log-prob of one token is -inf; its token weight."""
    config = make_config(model, layout)
    actor, parallel = start(launch, config)
    ours, _ = share(answers, parallel)
    old = actor.log_probs(ours.trajectories).log_probs
    engine, weights = old.clone(), ours.loss_weights.clone()
    old[0], weights[0] = -torch.inf, weight
    whole = MiniBatch(slice(0, len(ours.trajectories)), slice(0, len(old)), len(answers.trajectories))
    updated(make_session(config, parallel, actor), make_batch(ours, engine, [whole]), old, weights)
    return actor.version


def mismatch(
    launch: Launch, lengths: Sequence[int], versions: Sequence[int], actor: Tensor, engine: Tensor, algorithm: dict
) -> dict[str, float]:
    """The metrics of a step whose answers have these lengths and versions, dealt over all ranks."""
    parallel = initialize(launch, ParallelConfig(), choose_device("cpu", launch), seed=0)
    mine = deal_costs(lengths, parallel.dp_size)[parallel.dp_rank]
    parts = [(a, e) for a, e in zip(actor.split(list(lengths)), engine.split(list(lengths)), strict=True)]
    own = [torch.cat([torch.empty(0), *(parts[i][side] for i in mine)]) for side in (0, 1)]
    batch = SimpleNamespace(
        trajectories=mine,
        sample_index=mine,
        sequence_index=torch.arange(len(mine)).repeat_interleave(torch.tensor([lengths[i] for i in mine]).long()),
        rollout_log_probs=own[1],
    )
    samples = [SimpleNamespace(weight_version=version) for version in versions]
    experience = SimpleNamespace(trained=samples)
    return mismatch_metrics(experience, batch, own[0], AlgorithmConfig(**algorithm), parallel.dp_group)
