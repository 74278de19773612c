"""Guards of the training step, taken away one at a time inside a gloo worker.

Each entry of GUARDS is a context manager factory that removes one guard from the product; `without` runs a case in
it. The tests then see the numbers go wrong, so the parity tests would notice if the guard were ever lost.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from rest_megatron.actor import actor as actor_module
from rest_megatron.actor import gradients, losses, zero
from rest_megatron.distributed.launch import Launch
from rest_megatron.model import model
from rest_megatron.types import PolicyStreams
from tests.distributed.cases import Layout, make_config, share, start
from tests.tiny import Answers

SUMMED = gradients.needs_tensor_parallel_sum
TRANSFORMER_CONFIG = model.transformer_config
ENGINE_CONFIG = actor_module.engine_config
LOAD_WEIGHTS = actor_module.load_weights
FOR_SCHEDULE = losses.Losses._for_schedule


class _NoEmbeddingSum:
    """`torch.distributed` without the sum over the pipeline's ends."""

    def __getattr__(self, name):
        return getattr(dist, name)

    @staticmethod
    def all_reduce(tensor, group=None, **kwargs):
        if group is not parallel_state.get_embedding_group():
            dist.all_reduce(tensor, group=group, **kwargs)


def _transformer_config(*args, **fields):
    megatron = TRANSFORMER_CONFIG(*args)
    for name, value in fields.items():
        setattr(megatron, name, value)
    return megatron


def _with_fields(**fields):
    return partial(mock.patch.object, model, "transformer_config", lambda *args: _transformer_config(*args, **fields))


def _without_engine_keys(*names: str):
    def config(*args, **kwargs):
        return {name: value for name, value in ENGINE_CONFIG(*args, **kwargs).items() if name not in names}

    return partial(mock.patch.object, actor_module, "engine_config", config)


def _overlapped(*args, **kwargs):
    settings = ENGINE_CONFIG(*args, **kwargs)
    return {**settings, "zero_optimization": {**settings["zero_optimization"], "overlap_comm": True}}


def _load_without_marks(policy, source, parallel):
    LOAD_WEIGHTS(policy, source, parallel)
    for parameter in policy.parameters():
        del parameter.tensor_model_parallel


def _only(*kinds: str):
    """Sum over tensor-parallel ranks only these parameters."""
    return lambda name, parameter: SUMMED(name, parameter) and any(kind in name for kind in kinds)


def _unscaled(self, loss, *rest):
    """What goes to the schedule, without the factor."""
    scaled, count, kept = FOR_SCHEDULE(self, loss, *rest)
    return scaled / self.dp_size, count, kept


GUARDS: dict[str, Callable[[], AbstractContextManager]] = {
    "q/k norm gradients are summed over TP": partial(
        mock.patch.object, gradients, "needs_tensor_parallel_sum", _only("input_layernorm", "pre_mlp", "final")
    ),
    "norm gradients are summed over TP under SP": partial(
        mock.patch.object, gradients, "needs_tensor_parallel_sum", _only("q_layernorm", "k_layernorm")
    ),
    "tied embedding gradients are summed over the pipeline's ends": partial(
        mock.patch.object, gradients, "dist", _NoEmbeddingSum()
    ),
    "the tied copy is not counted in the norm": partial(
        mock.patch.object, zero, "mark_tied_copy", lambda policy, parallel: None
    ),
    "sharded parameters are marked": partial(mock.patch.object, actor_module, "load_weights", _load_without_marks),
    "the norm covers every pipeline stage": partial(
        mock.patch.object,
        zero.ModelParallelUnit,
        "get_model_parallel_group",
        lambda self: parallel_state.get_tensor_model_parallel_group(),
    ),
    "boundary mode": partial(mock.patch.multiple, zero.ZeroEngine, begin=lambda self: None, reduce=lambda self: None),
    "communication is not overlapped": partial(mock.patch.object, actor_module, "engine_config", _overlapped),
    "interleaved stages overlap p2p": _with_fields(overlap_p2p_comm=False, batch_p2p_comm=True),
    "the schedule does not divide the loss": _with_fields(calculate_per_token_loss=False),
    "the loss is scaled by the data-parallel size": partial(
        mock.patch.object,
        losses.Losses,
        "_for_schedule",
        _unscaled,
    ),
    "bf16 gradients accumulate in float32": _without_engine_keys("data_types"),
    "bf16 gradients are reduced in float32": _without_engine_keys("communication_data_type"),
    "an infinite loss spoils a gradient": partial(
        mock.patch.object, zero, "spoil_unless_finite", lambda policy, optimizer, loss: None
    ),
    "a skipped step's gradients are discarded": partial(
        mock.patch.object, zero.ZeroEngine, "_discard_reduced_gradients", lambda self: None
    ),
    "DeepSpeed knows of bf16": _without_engine_keys("bf16", "data_types", "communication_data_type"),
}


def without(launch: Launch, guard: str, case: Callable, *args) -> dict:
    """Run `case(launch, *args)` with one guard taken away."""
    with GUARDS[guard]():
        return case(launch, *args)


CLIPPED_INFINITY = "infinite advantage of a clipped token"


def not_a_number(
    launch: Launch, model_path: Path, layout: Layout, answers: Answers, dtype: str, places: Sequence[str]
) -> list[dict]:
    """A good update; then for each place one with a NaN there on the last rank only, and a good one.

    Returns each update's metrics and all weights of this rank after it, flat. A place is a loss stream, whose first
    entry becomes NaN, "gradient": an accumulated gradient gets one, or CLIPPED_INFINITY: the first token's advantage
    becomes infinite, and its ratio so large that the clip holds it.
    """
    actor, parallel = start(launch, make_config(model_path, layout, dtype, warmup_steps=10))
    ours, _ = share(answers, parallel)
    last = parallel.rank == parallel.world_size - 1
    history = []
    for place in ("", *(x for bad in places for x in (bad, ""))):
        streams = {name: getattr(ours, name).clone() for name in ("old_log_probs", "advantages", "loss_weights")}
        if place in streams and parallel.dp_rank == parallel.dp_size - 1:
            streams[place][0] = float("nan")
        if place == CLIPPED_INFINITY and parallel.dp_rank == parallel.dp_size - 1:
            streams["advantages"][0] = float("inf")
            streams["old_log_probs"][0] -= 9.0
        spoilt = spoil_a_gradient if place == "gradient" and last else gradients.sum_replicated_gradients
        with mock.patch.object(zero, "sum_replicated_gradients", spoilt):
            metrics = actor.update(ours.trajectories, PolicyStreams(**streams)).metrics
        weights = torch.cat([parameter.detach().flatten() for parameter in actor.policy.parameters()])
        history.append({"place": place, "metrics": metrics, "weights": weights})
    return history


def spoil_a_gradient(policy, optimizer, parallel) -> None:
    """Put a NaN into the gradient of one sharded matrix, then do what should be done."""
    matrix = next(p for name, p in policy.named_parameters() if "linear_fc1" in name)
    gradients.accumulated_gradient(optimizer, matrix).view(-1)[0] = float("nan")
    gradients.sum_replicated_gradients(policy, optimizer, parallel)


def unchanged_by_the_losses(launch: Launch, model_path: Path, layout: Layout, answers: Answers) -> list[bool]:
    """For every loss and micro-batch: whether it left the logits as they were, without a backward pass."""
    actor, parallel = start(launch, make_config(model_path, layout))
    ours, _ = share(answers, parallel)
    losses = (
        actor.losses.token_stats,
        partial(actor.losses.policy, ours.streams),
        partial(actor.losses.supervised, 100),
    )
    unchanged = []

    def watch(batch, hidden, non_loss_data=True):
        chunk = actor.policy.chunks[-1]
        logits = chunk.logits(hidden)
        before = logits.clone()
        for loss in losses:
            with mock.patch.object(chunk, "logits", return_value=logits):
                loss(batch, hidden)
            unchanged.append(torch.equal(before, logits))

    with torch.no_grad():
        actor.run(ours.trajectories, watch, forward_only=True)
    return unchanged


def ranks_of_deepspeed(launch: Launch, model_path: Path, layout: Layout) -> tuple[int, int]:
    """What DeepSpeed is told: this rank's number among the model-parallel ranks, and how many there are."""
    actor, parallel = start(launch, make_config(model_path, layout))
    unit = zero.ModelParallelUnit(parallel)
    assert unit.get_model_parallel_world_size() == dist.get_world_size(unit.get_model_parallel_group())
    return unit.get_model_parallel_rank(), unit.get_model_parallel_world_size()
