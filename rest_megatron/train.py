"""Reinforcement learning: the loop.

prompts -> answers -> scores -> advantages -> entropies -> token weights -> one clipped update per mini-batch.
"""

import time
from collections.abc import Callable, Sequence

from rest_megatron.collecting import collect
from rest_megatron.config.schema import Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.data.prompts import Prompt
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.evaluate.heldout import evaluate
from rest_megatron.launch import Launch
from rest_megatron.observe.alarms import Alarms
from rest_megatron.observe.report import final_table, write_report
from rest_megatron.observe.rollouts import dump_rollouts, log_prob_difference, rollout_metrics
from rest_megatron.reading import read_prompts
from rest_megatron.scoring import reward_metrics
from rest_megatron.session import Session, open_session
from rest_megatron.updating import (
    gradient_variance_metrics,
    gradient_variances,
    region_update_metrics,
    token_vectors,
    update,
)
from rest_megatron.weighing import WeightState, weigh_experience


def planned_updates(config: Config) -> int:
    """Optimizer steps of a training step that trains on all of its answers."""
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    return config.train.epochs * -(-answers // (config.train.mini_batch_size or answers))


def main(config: Config, launch: Launch) -> None:
    """Run the `train` command on this rank."""
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    heldout = read_prompts(config, tokenizer, config.data.eval) if config.data.eval else []
    with open_session(config, launch, tokenizer, config.train.steps * planned_updates(config)) as session:
        before = evaluate(session, 0, heldout)
        train(session, prompts, heldout)
        after = evaluate(session, config.train.steps, heldout)
        session.export("hf")
        if session.is_main:
            write_report(session.run_dir)
            session.progress.write(final_table(before, after) if heldout else "trained")


def train(session: Session, prompts: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    """All steps."""
    config = session.config
    cursor = PromptCursor(len(prompts), config.run.seed)
    alarms = Alarms(config.alarms)
    state = WeightState()
    for step in range(1, config.train.steps + 1):
        started = time.perf_counter()
        state, metrics = train_step(session, step, state, lambda n: [prompts[i] for i in cursor.next_batch(n)])
        metrics["time/step"] = time.perf_counter() - started
        messages = alarms.update(step, metrics)
        metrics |= alarms.metrics
        session.metrics.log(step, metrics)
        session.progress.step(step, config.train.steps, metrics)
        for message in messages:
            session.progress.write(message)
        if due(config.train.eval_interval, step, config.train.steps):
            evaluate(session, step, heldout)
        if due(config.train.export_interval, step, config.train.steps):
            session.export(f"hf-{step:06d}")


def due(interval: int, step: int, last: int) -> bool:
    """Whether something done every `interval` steps is due after `step`; what ends the run does the last one."""
    return interval > 0 and step % interval == 0 and step < last


def train_step(
    session: Session, step: int, state: WeightState, next_prompts: Callable[[int], list[Prompt]]
) -> tuple[WeightState, dict[str, float]]:
    """One rollout and its updates; steps count from 1. Returns the state of the token weights and the metrics."""
    config, actor, parallel = session.config, session.actor, session.parallel
    progress = step / config.train.steps
    session.rollout.publish(actor.version)
    experience = collect(session, step, progress, next_prompts)

    started = time.perf_counter()
    batch, old, weights = weigh_experience(session, experience, state, progress, step)
    reference = actor.ref_log_probs(batch.trajectories)
    metrics = {"progress": progress} | weights.metrics() | reward_metrics(experience.all_scores)
    interval = config.train.gradient_variance_interval
    if interval and step % interval == 0 and experience.num_trained > 1:
        groups = experience.num_trained
        metrics |= gradient_variance_metrics(
            gradient_variances(session, batch, groups, old.log_probs, weights.tokens, reference)
        )
    log_probs, updates = update(session, batch, old.log_probs, weights.tokens, reference)
    actor.skip(planned_updates(config) - len(batch.mini_batches) * config.train.epochs)

    metrics |= updates | region_update_metrics(session, batch, old.log_probs, log_probs, weights.tokens)
    metrics |= rollout_metrics(experience)
    metrics["rollout/log_prob_difference"] = log_prob_difference(old.log_probs, batch.rollout_log_probs, parallel)
    metrics |= {"time/rollout": experience.seconds, "time/reward": experience.reward_seconds}
    metrics["time/update"] = time.perf_counter() - started
    if config.rollout.dump:
        vectors = token_vectors(session, batch, old.entropy, old.log_probs, log_probs, weights.tokens)
        if session.is_main:
            dump_rollouts(session.run_dir, step, experience, session.token_table, vectors)
    return weights.state, metrics
