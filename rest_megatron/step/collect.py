"""A step's answers: sampled, scored, and chosen for training."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rest_megatron.config.schema import AlgorithmConfig
from rest_megatron.method.advantages import group_relative, leave_one_out, zero_variance_groups
from rest_megatron.rollout.engine import number_requests
from rest_megatron.session import Session
from rest_megatron.step.score import Groups, add_judge, add_overlong, score_groups
from rest_megatron.types import Experience, Prompt, Sample, Score

NextPrompts = Callable[[int], list[Prompt]]
"""Gives so many prompts to sample from."""


def collect(session: Session, step: int, next_prompts: NextPrompts, progress: float | None = None) -> Experience:
    """Sample answers to `rollout.prompts_per_step` prompts from the actor's weights as they are, and score them.

    step counts from 1. progress: where on the reward's ramp; None: step / train.steps. The engine has its accelerators
    only within. With algorithm.zero_variance=refill groups whose answers all score alike are replaced by new prompts'
    groups, in up to algorithm.max_refills further rollouts (DAPO, arXiv 2503.14476, dynamic sampling).
    """
    progress = step / session.config.train.steps if progress is None else progress
    started = time.perf_counter()
    session.rollout.publish(session.actor.version)
    published = time.perf_counter() - started
    experience = _collect(session, step, progress, next_prompts)
    session.rollout.sleep()
    return replace(experience, publish_seconds=published)


def _collect(session: Session, step: int, progress: float, next_prompts: NextPrompts) -> Experience:
    config = session.config
    algorithm, wanted = config.algorithm, config.rollout.prompts_per_step
    more = algorithm.max_refills if algorithm.zero_variance == "refill" else 0
    prompts: list[Prompt] = []
    groups: list[list[Sample]] = []
    scores: list[list[Score]] = []
    order: list[int] = []
    seconds = reward_seconds = 0.0
    for rounds in range(1, more + 2):
        new = next_prompts(wanted - len(order))
        started = time.perf_counter()
        answers = session.rollout.generate(
            number_requests([p.token_ids for p in new], config.rollout.max_new_tokens),
            group_size=config.rollout.group_size,
            seed=rollout_seed(config.run.seed, step, rounds - 1),
        )
        sampled = time.perf_counter()
        scored = score(session, new, answers, progress, step)
        seconds, reward_seconds = seconds + sampled - started, reward_seconds + time.perf_counter() - sampled
        order += [len(prompts) + i for i in _chosen(scored, algorithm)]
        prompts, groups, scores = prompts + new, groups + answers, scores + scored
        if len(order) >= wanted or rounds > more:
            break
    num_trained = len(order)
    order += sorted(set(range(len(prompts))) - set(order))
    scores = [scores[i] for i in order]
    return Experience(
        [prompts[i] for i in order],
        [groups[i] for i in order],
        scores,
        group_advantages(scores, algorithm),
        num_trained,
        rounds,
        seconds,
        reward_seconds,
    )


def rollout_seed(seed: int, step: int, refill: int = 0) -> int:
    """The seed of one rollout of a run with run.seed=`seed`; refill: which of the step's further ones, from 1 on.

    Primes keep it from those of other steps and refills.
    """
    return seed + 1_000_003 * step + 1_009 * refill


def score(session: Session, prompts: Sequence[Prompt], groups: Groups, progress: float, step: int) -> list[list[Score]]:
    """Rule or user reward, the judge's grade and the punishment of long answers, as configured."""
    config, table, parallel = session.config, session.token_table, session.parallel
    scores = score_groups(groups, prompts, session.reward, table, progress=progress, step=step, parallel=parallel)
    scores = add_judge(scores, groups, prompts, session.judge, config.reward, table, parallel)
    return add_overlong(scores, groups, config.reward, config.rollout.max_new_tokens)


def _totals(scores: list[list[Score]]) -> Tensor:
    return torch.tensor([[s.total for s in group] for group in scores], dtype=torch.float64)


def _chosen(scores: list[list[Score]], algorithm: AlgorithmConfig) -> list[int]:
    """The groups to train on."""
    if algorithm.zero_variance == "keep":
        return list(range(len(scores)))
    return (~zero_variance_groups(_totals(scores))).nonzero().squeeze(1).tolist()


def group_advantages(scores: list[list[Score]], algorithm: AlgorithmConfig) -> Tensor:
    """[prompts, group_size] float32 of the scores of equally large groups, as algorithm.advantage says."""
    totals = _totals(scores)
    if algorithm.advantage == "leave_one_out":
        return leave_one_out(totals)
    return group_relative(totals, normalize_by_std=algorithm.normalize_by_std)
