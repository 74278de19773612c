"""A step's only update without a log-prob pass before it: its own forward gives the old log-probs (ratio 1)."""

from dataclasses import replace

import torch

from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.gradients import measurement_due, variance_due
from rest_megatron.step.nonfinite import count_skipped
from rest_megatron.step.streams import normalised
from rest_megatron.step.update import StepUpdates, mean_metrics
from rest_megatron.step.weigh import StepWeights, describe, require_finite_statistics, spread_step, stand_still
from rest_megatron.types import Batch, Experience, PolicyStreams, TokenStats


def needs_no_log_probs(session: Session, batch: Batch, state: RunState) -> bool:
    """Whether the step after state.step is updated without a log-prob pass, see algorithm.old_log_probs. Collective.

    Not while base weights are still measured, nor in a step in which gradients are.
    """
    config, step = session.config, state.step + 1
    if config.algorithm.old_log_probs == "recompute" or len(batch.mini_batches) != 1:
        return False
    if variance_due(batch, step, config.train) or measurement_due(state.weights, step, config.weights):
        return False
    return stand_still(batch, state.weights, config.weights, session.parallel.dp_group)


def update_on_policy(
    session: Session, experience: Experience, batch: Batch, state: RunState
) -> tuple[TokenStats, StepWeights, StepUpdates]:
    """Statistics before the update, weights and update of the step after state.step; its one mini-batch. Collective.

    As `log_probs`, `token_weights` and `update`, but for rounding, and that a step is taken, without gradient, also
    where the importance correction masks every answer. Raises NonFiniteError as they do; what is not finite in an
    answer without a gradient shows after the update.
    """
    tokens, weight_state = spread_step(session, experience, batch, None, state)
    bare = StepWeights(tokens, {}, weight_state, torch.ones_like(tokens))
    reference = session.actor.ref_log_probs(batch.trajectories)
    streams = PolicyStreams(batch.rollout_log_probs, batch.advantages, tokens, reference)
    own = normalised(session, batch, batch.mini_batches[0], streams, bare)
    metrics = []
    if own is None:
        old = session.actor.log_probs(batch.trajectories)
        # Not before: a run that is to stop does so in the pass, with the schedule as it was.
        session.actor.skip(1)
    else:
        found, old = session.actor.update_on_policy(batch.trajectories, own)
        count_skipped(session, state, state.step + 1, found, batch.trajectories, own)
        metrics = [found]
    require_finite_statistics(old, session.parallel.dp_group, state.step + 1)
    weights = describe(batch, tokens, old, weight_state, session.config.algorithm, session.parallel.dp_group)
    state.weights = weights.state
    loss_weights = torch.zeros_like(tokens) if own is None else own.loss_weights
    corrected = replace(weights, tokens=loss_weights).corrected
    return old, weights, StepUpdates(mean_metrics(metrics), old.log_probs, corrected)
