"""Reinforcement learning: the loop.

prompts -> answers -> scores -> advantages -> entropies -> token weights -> one clipped update per mini-batch.
"""

import time
from collections.abc import Callable, Sequence

from rest_megatron.checkpoint.resume import EXPORT
from rest_megatron.evaluate.heldout import evaluate
from rest_megatron.saver import NoSaver, Saver
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.batch import make_batch
from rest_megatron.step.collect import NextPrompts, collect
from rest_megatron.step.dump import dump_step
from rest_megatron.step.measure import answer_metrics, measure, token_vectors
from rest_megatron.step.on_policy import needs_no_log_probs, update_on_policy
from rest_megatron.step.update import update
from rest_megatron.step.weigh import token_weights
from rest_megatron.types import Experience, Prompt

KeptAnswers = Callable[[int], Experience | None]
"""Answers to a step, counted from 1, that were sampled before: by a stopped run, or by the run of train.replay."""


def train(
    session: Session,
    state: RunState,
    next_prompts: NextPrompts,
    kept: KeptAnswers,
    heldout: Sequence[Prompt],
    saver: Saver | NoSaver,
) -> None:
    """All steps after state.step, and what is due after each: evaluation, export, checkpoint.

    next_prompts: gives so many prompts to sample from. kept: None for a step whose answers are still to be sampled.
    """
    while True:
        if not state.evaluated:
            finish_step(session, state.step, heldout)
            state.evaluated = True
            saver.mark()
        if state.step == session.config.train.steps:
            return
        train_step(session, state, next_prompts, kept, saver)


def train_step(
    session: Session, state: RunState, next_prompts: NextPrompts, kept: KeptAnswers, saver: Saver | NoSaver
) -> None:
    """The next step: answers, their token weights, the updates, and a checkpoint when one is due.

    With train.debug=rollout_only the answers are dumped, and nothing is learned from them.
    """
    config, step, started = session.config, state.step + 1, time.perf_counter()
    experience = kept(step)
    if experience is None:
        experience = collect(session, step, next_prompts)  # weights to the engine; sample, score, advantages
        saver.mark(experience)
    metrics = answer_metrics(session, experience)
    if config.train.debug == "rollout_only":
        dump_step(session, step, experience)
    else:
        with session.parallel.watch.phase("update"):
            learning = time.perf_counter()
            batch = make_batch(session, experience)  # answers -> this rank's vectors
            if needs_no_log_probs(session, batch, state):
                old, weights, done = update_on_policy(session, experience, batch, state)  # the three below in one pass
            else:
                old = session.actor.log_probs(batch.trajectories)  # log-prob, entropy, collision per token; no gradient
                weights = token_weights(session, experience, batch, old, state)  # entropy -> region -> curriculum
                done = update(session, experience, batch, old, weights, state)  # clipped loss, Megatron, ZeRO step
            metrics |= measure(session, experience, batch, old, weights, done)
            metrics["time/update"] = time.perf_counter() - learning
            if config.rollout.dump:
                dump_step(session, step, experience, token_vectors(session, batch, old, weights, done))
    state.step, state.evaluated = step, False
    metrics |= {"time/step": time.perf_counter() - started, "time/checkpoint": saver.take_seconds()}
    log_step(session, state, metrics)
    saver.mark()
    session.parallel.poll()
    saver.save_if_due()


def log_step(session: Session, state: RunState, metrics: dict[str, float]) -> None:
    """The step's metrics and alarms, to files, trackers and terminal."""
    steps = session.config.train.steps
    metrics = {"progress": state.step / steps} | metrics
    messages = state.alarms.update(state.step, metrics)
    metrics |= state.alarms.metrics
    session.metrics.log(state.step, metrics)
    session.progress.step(state.step, steps, metrics)
    for message in messages:
        session.progress.write(message)


def finish_step(session: Session, step: int, heldout: Sequence[Prompt]) -> None:
    """What is due after `step` training steps: evaluation and export; the first evaluation after none of them."""
    train, last = session.config.train, step == session.config.train.steps
    if step == 0 or last or due(train.eval_interval, step):
        with session.parallel.watch.phase("evaluation"):
            evaluate(session, step, heldout)
    if train.debug != "rollout_only" and (last or due(train.export_interval, step)):
        session.export(EXPORT if last else f"{EXPORT}-{step:06d}")


def due(interval: int, step: int) -> bool:
    """Whether something done every `interval` steps is due after `step`, which counts from 1."""
    return interval > 0 and step > 0 and step % interval == 0
