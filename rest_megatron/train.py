"""Reinforcement learning: the loop.

prompts -> answers -> scores -> advantages -> entropies -> token weights -> one clipped update per mini-batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from rest_megatron.checkpoint.resume import Saved, write_finished
from rest_megatron.commands.inputs import read_prompts
from rest_megatron.config.no_engine import without_engine
from rest_megatron.config.schema import Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.distributed.launch import Launch
from rest_megatron.evaluate.heldout import evaluate
from rest_megatron.observe.metrics import EVALUATIONS, read_rows
from rest_megatron.observe.mismatch import mismatch_metrics, version_metrics
from rest_megatron.observe.report import final_table, write_report
from rest_megatron.observe.rollouts import rollout_metrics
from rest_megatron.saver import NoSaver, Saver
from rest_megatron.session import Session, open_session
from rest_megatron.state import RunState, data_hash, new_state
from rest_megatron.step.collect import collect
from rest_megatron.step.dump import dump_rollouts
from rest_megatron.step.replay import DumpReader, open_replay
from rest_megatron.step.score import reward_metrics
from rest_megatron.step.update import (
    gradient_variance_metrics,
    gradient_variances,
    loss_inputs,
    region_update_metrics,
    token_vectors,
    update,
)
from rest_megatron.step.weigh import WeightState, weigh_experience
from rest_megatron.types import Experience, Prompt

ENDINGS = {
    "off": "trained",
    "rollout_only": "nothing was trained; the answers are in rollouts/",
    "train_only": "trained on the answers of train.replay",
}


def planned_updates(config: Config) -> int:
    """Optimizer steps of a training step that trains on all of its answers."""
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    return config.train.epochs * -(-answers // (config.train.mini_batch_size or answers))


def main(config: Config, launch: Launch) -> None:
    """Run the `train` command on this rank, from the newest checkpoint of run.dir on where there is one.

    With train.debug on there are no evaluations and no checkpoints, and nothing is exported where nothing was learned.
    """
    debug = config.train.debug
    config = without_engine(config) if debug == "train_only" else config
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    heldout = read_prompts(config, tokenizer, config.data.eval) if config.data.eval and debug == "off" else []
    replay = open_replay(config, prompts) if debug == "train_only" else None
    updates = config.train.steps * planned_updates(config)
    saved = Saved("train", data_hash(asdict(prompt) for prompt in prompts)) if debug == "off" else None
    with open_session(config, launch, tokenizer, updates, prompts, saved) as session:
        state = new_state(session, len(prompts))
        answers = sampling(session, prompts, state.cursor) if replay is None else replay.experience
        if saved is None:
            train(session, state, answers, heldout, NoSaver())
        else:
            saver = Saver(session, state, saved)
            pending = saver.restore(DumpReader(config, prompts, session.actor.policy.hf.vocab_size).experience)
            with saver.saving_when_stopped():
                train(session, state, answers, heldout, saver, pending)
        if session.is_main:
            write_finished(config, "train")
            write_report(session.run_dir)
            evaluations = read_rows(session.run_dir / EVALUATIONS)
            session.progress.write(final_table(evaluations[0], evaluations[-1]) if heldout else ENDINGS[debug])


def sampling(session: Session, prompts: Sequence[Prompt], cursor: PromptCursor) -> Callable[[int], Experience]:
    """A step's answers, from the actor's weights at that step, to the prompts in the order of `cursor`."""

    def sample(step: int) -> Experience:
        started = time.perf_counter()
        session.rollout.publish(session.actor.version)
        seconds = time.perf_counter() - started
        progress = step / session.config.train.steps
        experience = collect(session, step, progress, lambda n: [prompts[i] for i in cursor.next_batch(n)])
        session.rollout.sleep()
        return replace(experience, publish_seconds=seconds)

    return sample


def train(
    session: Session,
    state: RunState,
    answers: Callable[[int], Experience],
    heldout: Sequence[Prompt],
    saver: Saver | NoSaver,
    pending: Experience | None = None,
) -> None:
    """All steps after state.step.

    answers: those of a step, counted from 1; with train.debug=rollout_only they are dumped, no more. pending: answers
    to the next step that a stopped run had already scored.
    """
    config = session.config
    while True:
        if not state.closed:
            close_step(session, state.step, heldout)
            state.closed = True
            saver.mark()
        if state.step == config.train.steps:
            return
        step, started = state.step + 1, time.perf_counter()
        if pending is None:
            experience = answers(step)
            saver.mark(experience)
        else:
            experience, pending = pending, None
        metrics = answer_metrics(session, experience, step)
        if config.train.debug != "rollout_only":
            with session.parallel.watch.phase("update"):
                state.weights, learned = train_step(session, step, state, experience)
            metrics |= learned
        elif session.is_main:
            dump_rollouts(session.run_dir, step, experience, session.token_table, {})
        state.step, state.closed = step, False
        metrics |= {"time/step": time.perf_counter() - started, "time/checkpoint": saver.take_seconds()}
        log_step(session, state, metrics)
        saver.mark()
        session.parallel.poll()
        saver.save_if_due()


def log_step(session: Session, state: RunState, metrics: dict[str, float]) -> None:
    """The step's metrics and alarms, to files, trackers and terminal."""
    messages = state.alarms.update(state.step, metrics)
    metrics |= state.alarms.metrics
    session.metrics.log(state.step, metrics)
    session.progress.step(state.step, session.config.train.steps, metrics)
    for message in messages:
        session.progress.write(message)


def close_step(session: Session, step: int, heldout: Sequence[Prompt]) -> None:
    """What is due after `step` training steps: evaluation and export; the first evaluation after none of them."""
    train, last = session.config.train, step == session.config.train.steps
    if step == 0 or last or due(train.eval_interval, step):
        with session.parallel.watch.phase("evaluation"):
            evaluate(session, step, heldout)
    if train.debug != "rollout_only" and (last or due(train.export_interval, step)):
        session.export("hf" if last else f"hf-{step:06d}")


def due(interval: int, step: int) -> bool:
    """Whether something done every `interval` steps is due after `step`, which counts from 1."""
    return interval > 0 and step > 0 and step % interval == 0


def answer_metrics(session: Session, experience: Experience, step: int) -> dict[str, float]:
    """What a step's answers are like, before they are trained on."""
    times = {"publish": experience.publish_seconds, "rollout": experience.seconds, "reward": experience.reward_seconds}
    metrics = {"progress": step / session.config.train.steps} | reward_metrics(experience.all_scores)
    metrics |= rollout_metrics(experience) | version_metrics(experience, session.actor.version)
    return metrics | {f"time/{name}": seconds for name, seconds in times.items()}


def train_step(
    session: Session, step: int, state: RunState, experience: Experience
) -> tuple[WeightState, dict[str, float]]:
    """The updates from a step's answers; steps count from 1. Returns the state of the token weights and the metrics."""
    config, actor = session.config, session.actor
    progress = step / config.train.steps
    started = time.perf_counter()
    batch, old, weights = weigh_experience(session, experience, state.weights, progress, step)
    inputs = loss_inputs(session, batch, old.log_probs, weights.tokens)
    metrics = weights.metrics()
    metrics |= mismatch_metrics(experience, batch, old.log_probs, config.algorithm, session.parallel.dp_group)
    interval = config.train.gradient_variance_interval
    if interval and step % interval == 0 and experience.num_trained > 1:
        metrics |= gradient_variance_metrics(gradient_variances(session, batch, experience.num_trained, inputs))
    log_probs, updates = update(session, batch, inputs, state.skips, step)
    actor.skip(planned_updates(config) - len(batch.mini_batches) * config.train.epochs)

    metrics |= updates | region_update_metrics(session, batch, inputs, log_probs)
    metrics["time/update"] = time.perf_counter() - started
    if config.rollout.dump:
        vectors = token_vectors(session, batch, old, inputs, log_probs)
        if session.is_main:
            dump_rollouts(session.run_dir, step, experience, session.token_table, vectors)
    return weights.state, metrics
