"""ResT reinforcement learning: the loop.

prompts -> answers -> scores -> advantages -> entropies -> token weights -> one clipped update per mini-batch.
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rest_megatron.batch import Batch, make_batch
from rest_megatron.config.schema import Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.data.prompts import Prompt, load_prompts
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.evaluate.heldout import evaluate
from rest_megatron.launch import Launch
from rest_megatron.method.advantages import group_relative
from rest_megatron.method.aggregation import loss_weights
from rest_megatron.observe.report import final_table, write_report
from rest_megatron.observe.rollouts import dump_rollouts, log_prob_difference, rollout_metrics
from rest_megatron.reward.score import parse_ground_truth
from rest_megatron.scoring import reward_metrics, score_groups
from rest_megatron.session import Session, open_session
from rest_megatron.weighing import weigh


def optimizer_steps(config: Config) -> int:
    """Optimizer steps of the whole run."""
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    return config.train.steps * config.train.epochs * -(-answers // (config.train.mini_batch_size or answers))


def main(config: Config, launch: Launch) -> None:
    """Run the `train` command on this rank."""
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    heldout = read_prompts(config, tokenizer, config.data.eval) if config.data.eval else []
    with open_session(config, launch, tokenizer, optimizer_steps(config)) as session:
        before = evaluate(session, 0, heldout)
        train(session, prompts, heldout)
        after = evaluate(session, config.train.steps, heldout)
        session.actor.export(session.run_dir / "hf")
        if session.is_main:
            write_report(session.run_dir)
            session.progress.write(final_table(before, after) if heldout else "trained")


def read_prompts(config: Config, tokenizer: PreTrainedTokenizerBase, path: str) -> list[Prompt]:
    """Prompts of a file, every row checked against the limits and the reward's parser."""
    return load_prompts(
        path,
        tokenizer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        overlong=config.data.overlong,
        validate=parse_ground_truth,
    )


def train(session: Session, prompts: Sequence[Prompt], heldout: Sequence[Prompt]) -> None:
    """All steps."""
    config = session.config
    cursor = PromptCursor(len(prompts), config.run.seed)
    running_entropy = None
    for step in range(config.train.steps):
        started = time.perf_counter()
        chosen = [prompts[i] for i in cursor.next_batch(config.rollout.prompts_per_step)]
        running_entropy, metrics = train_step(session, step, chosen, running_entropy)
        metrics["time/step"] = time.perf_counter() - started
        session.metrics.log(step + 1, metrics)
        session.progress.step(step + 1, config.train.steps, metrics)
        if due(config.train.eval_interval, step + 1, config.train.steps):
            evaluate(session, step + 1, heldout)
        if due(config.train.export_interval, step + 1, config.train.steps):
            session.actor.export(session.run_dir / f"hf-{step + 1:06d}")


def due(interval: int, step: int, last: int) -> bool:
    """Whether something done every `interval` steps is due after `step`; what ends the run does the last one."""
    return interval > 0 and step % interval == 0 and step < last


def train_step(
    session: Session, step: int, prompts: Sequence[Prompt], running_entropy: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """One rollout and its updates. Returns the running region entropies [4] and the step's metrics."""
    config, actor, parallel = session.config, session.actor, session.parallel
    progress = step / config.train.steps
    started = time.perf_counter()
    session.rollout.publish(actor.version)
    groups = session.rollout.generate(
        [p.token_ids for p in prompts],
        group_size=config.rollout.group_size,
        seed=config.run.seed + 1_000_003 * (step + 1),
    )
    rollout_seconds = time.perf_counter() - started

    truths = [parse_ground_truth(p.ground_truth) for p in prompts]
    scores = score_groups(groups, truths, session.token_table, progress=progress, parallel=parallel)
    totals = torch.tensor([[s.total for s in group] for group in scores])
    advantages = group_relative(totals, normalize_by_std=config.algorithm.normalize_by_std).flatten()
    samples = [sample for group in groups for sample in group]
    batch = make_batch(
        samples,
        advantages,
        session.token_table,
        mini_batch_size=config.train.mini_batch_size or len(samples),
        dp_rank=parallel.dp_rank,
        dp_size=parallel.dp_size,
        device=parallel.device,
    )

    started = time.perf_counter()
    old = actor.log_probs(batch.trajectories)
    weights = weigh(batch, old, running_entropy, progress, config.weights, parallel.dp_group)
    updates = [
        update(session, batch, i, old.log_probs, weights.tokens)
        for _ in range(config.train.epochs)
        for i in range(len(batch.mini_batches))
    ]

    metrics = {"progress": progress} | weights.metrics() | reward_metrics([s for group in scores for s in group])
    metrics |= rollout_metrics(samples, totals, rollout_seconds)
    metrics |= {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}
    metrics["rollout/log_prob_difference"] = log_prob_difference(old.log_probs, batch.rollout_log_probs, parallel)
    metrics |= {"time/rollout": rollout_seconds, "time/update": time.perf_counter() - started}
    if session.is_main and config.rollout.dump:
        dump_rollouts(session.run_dir, step + 1, prompts, groups, scores, advantages, session.token_table)
    return weights.running_entropy, metrics


def update(session: Session, batch: Batch, number: int, old_log_probs: Tensor, weights: Tensor) -> dict[str, float]:
    """One optimizer step on mini-batch `number`; its loss is normalised over all micro-batches and ranks."""
    part = batch.mini_batches[number]
    total_weight = weights[part.tokens].double().sum()
    dist.all_reduce(total_weight, group=session.parallel.dp_group)
    sequence_index = batch.sequence_index[part.tokens] - part.sequences.start
    normalised = loss_weights(
        weights[part.tokens],
        sequence_index,
        part.num_sequences_global,
        session.config.algorithm.loss_aggregation,
        float(total_weight),
    )
    return session.actor.update(
        batch.trajectories[part.sequences], old_log_probs[part.tokens], batch.advantages[part.tokens], normalised
    )
