"""Training runs in which one rank meets a number that is not finite."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from unittest import mock

import torch

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.gradients import accumulated_gradient
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import NonFiniteError
from rest_megatron.types import TokenStats
from tests.distributed import training_cases
from tests.distributed.training_cases import ScriptedEngine

PLACES = ("loss", "advantage", "gradient", "importance")


def ran(launch: Launch, overrides: Sequence[str], place: str, value: float, updates: Sequence[int], rank: int) -> str:
    """Run `train`, in which `rank` meets `value` in the updates of these numbers, from 1 on.

    Returns the text of the NonFiniteError, or "".
    """
    done = [0]
    actual_update, actual_step = Actor.update, Actor._step

    def update(actor: Actor, trajectories, streams, **how):
        done[0] += 1
        if done[0] in updates and launch.rank == rank:
            field = {"loss": "old_log_probs", "advantage": "advantages", "importance": "loss_weights"}.get(place)
            if field is not None:
                streams = streams._replace(**{field: torch.full_like(streams.advantages, value)})
        return actual_update(actor, trajectories, streams, **how)

    def step(actor: Actor, *args):
        reduce = actor.zero.reduce

        def spoil_and_reduce() -> None:
            if place == "gradient" and done[0] in updates and launch.rank == rank:
                accumulated_gradient(actor.zero.optimizer, list(actor.policy.parameters())[-1]).view(-1)[0] = value
            reduce()

        with mock.patch.object(actor.zero, "reduce", spoil_and_reduce):
            return actual_step(actor, *args)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Actor, "update", update))
        stack.enter_context(mock.patch.object(Actor, "_step", step))
        return _told(launch, overrides)


def ran_with_broken_statistics(launch: Launch, overrides: Sequence[str], rank: int) -> str:
    """The policy's own log-probs of the second step are NaN on one rank."""
    actual, asked = Actor.log_probs, [0]

    def log_probs(actor: Actor, trajectories) -> TokenStats:
        stats = actual(actor, trajectories)
        asked[0] += 1
        if asked[0] == 2 and launch.rank == rank:
            stats.entropy[0] = math.nan
        return stats

    with mock.patch.object(Actor, "log_probs", log_probs):
        return _told(launch, overrides)


def _told(launch: Launch, overrides: Sequence[str]) -> str:
    try:
        training_cases.ran(launch, "train", (), overrides, ScriptedEngine)
    except NonFiniteError as error:
        return str(error)
    return ""
