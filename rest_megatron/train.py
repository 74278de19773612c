"""Reinforcement learning: the loop.

prompts -> answers -> scores -> advantages -> entropies -> token weights -> one clipped update per mini-batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from rest_megatron.collecting import Experience, collect
from rest_megatron.config.no_engine import without_engine
from rest_megatron.config.schema import Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.data.prompts import Prompt
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.evaluate.heldout import evaluate
from rest_megatron.launch import Launch
from rest_megatron.observe.alarms import Alarms
from rest_megatron.observe.mismatch import mismatch_metrics, version_metrics
from rest_megatron.observe.report import final_table, write_report
from rest_megatron.observe.rollouts import dump_rollouts, rollout_metrics
from rest_megatron.reading import read_prompts
from rest_megatron.replay import open_replay
from rest_megatron.scoring import reward_metrics
from rest_megatron.session import Session, open_session
from rest_megatron.updating import (
    gradient_variance_metrics,
    gradient_variances,
    loss_inputs,
    region_update_metrics,
    token_vectors,
    update,
)
from rest_megatron.weighing import WeightState, weigh_experience

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
    """Run the `train` command on this rank.

    With train.debug on there are no evaluations, and nothing is exported where nothing was learned.
    """
    debug = config.train.debug
    config = without_engine(config) if debug == "train_only" else config
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    heldout = read_prompts(config, tokenizer, config.data.eval) if config.data.eval and debug == "off" else []
    replay = open_replay(config, prompts) if debug == "train_only" else None
    with open_session(config, launch, tokenizer, config.train.steps * planned_updates(config), prompts) as session:
        before = evaluate(session, 0, heldout)
        train(session, sampling(session, prompts) if replay is None else replay.experience, heldout)
        after = evaluate(session, config.train.steps, heldout)
        if debug != "rollout_only":
            session.export("hf")
        if session.is_main:
            write_report(session.run_dir)
            session.progress.write(final_table(before, after) if heldout else ENDINGS[debug])


def sampling(session: Session, prompts: Sequence[Prompt]) -> Callable[[int], Experience]:
    """A step's answers, from the actor's weights at that step, to the prompts in the order of a `PromptCursor`."""
    cursor = PromptCursor(len(prompts), session.config.run.seed)

    def sample(step: int) -> Experience:
        started = time.perf_counter()
        session.rollout.publish(session.actor.version)
        seconds = time.perf_counter() - started
        progress = step / session.config.train.steps
        experience = collect(session, step, progress, lambda n: [prompts[i] for i in cursor.next_batch(n)])
        session.rollout.sleep()
        return replace(experience, publish_seconds=seconds)

    return sample


def train(session: Session, answers: Callable[[int], Experience], heldout: Sequence[Prompt]) -> None:
    """All steps. answers: those of a step, counted from 1; with train.debug=rollout_only they are dumped, no more."""
    config = session.config
    alarms = Alarms(config.alarms)
    state = WeightState()
    for step in range(1, config.train.steps + 1):
        started = time.perf_counter()
        experience = answers(step)
        metrics = answer_metrics(session, experience, step)
        if config.train.debug != "rollout_only":
            state, learned = train_step(session, step, state, experience)
            metrics |= learned
        elif session.is_main:
            dump_rollouts(session.run_dir, step, experience, session.token_table, {})
        metrics["time/step"] = time.perf_counter() - started
        messages = alarms.update(step, metrics)
        metrics |= alarms.metrics
        session.metrics.log(step, metrics)
        session.progress.step(step, config.train.steps, metrics)
        for message in messages:
            session.progress.write(message)
        if due(config.train.eval_interval, step, config.train.steps):
            evaluate(session, step, heldout)
        if config.train.debug != "rollout_only" and due(config.train.export_interval, step, config.train.steps):
            session.export(f"hf-{step:06d}")


def due(interval: int, step: int, last: int) -> bool:
    """Whether something done every `interval` steps is due after `step`; what ends the run does the last one."""
    return interval > 0 and step % interval == 0 and step < last


def answer_metrics(session: Session, experience: Experience, step: int) -> dict[str, float]:
    """What a step's answers are like, before they are trained on."""
    times = {"publish": experience.publish_seconds, "rollout": experience.seconds, "reward": experience.reward_seconds}
    metrics = {"progress": step / session.config.train.steps} | reward_metrics(experience.all_scores)
    metrics |= rollout_metrics(experience) | version_metrics(experience, session.actor.version)
    return metrics | {f"time/{name}": seconds for name, seconds in times.items()}


def train_step(
    session: Session, step: int, state: WeightState, experience: Experience
) -> tuple[WeightState, dict[str, float]]:
    """The updates from a step's answers; steps count from 1. Returns the state of the token weights and the metrics."""
    config, actor = session.config, session.actor
    progress = step / config.train.steps
    started = time.perf_counter()
    batch, old, weights = weigh_experience(session, experience, state, progress, step)
    inputs = loss_inputs(session, batch, old.log_probs, weights.tokens)
    metrics = weights.metrics()
    metrics |= mismatch_metrics(experience, batch, old.log_probs, config.algorithm, session.parallel.dp_group)
    interval = config.train.gradient_variance_interval
    if interval and step % interval == 0 and experience.num_trained > 1:
        metrics |= gradient_variance_metrics(gradient_variances(session, batch, experience.num_trained, inputs))
    log_probs, updates = update(session, batch, inputs)
    actor.skip(planned_updates(config) - len(batch.mini_batches) * config.train.epochs)

    metrics |= updates | region_update_metrics(session, batch, inputs, log_probs)
    metrics["time/update"] = time.perf_counter() - started
    if config.rollout.dump:
        vectors = token_vectors(session, batch, old, inputs, log_probs)
        if session.is_main:
            dump_rollouts(session.run_dir, step, experience, session.token_table, vectors)
    return weights.state, metrics
