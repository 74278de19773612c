"""Rewards of sampled answers, computed once and shared."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch

from rest_megatron.config.schema import RewardConfig
from rest_megatron.data.answers import answer_bytes, think_open
from rest_megatron.distributed.parallel import MainOnly, Parallel
from rest_megatron.method.advantages import overlong_penalty
from rest_megatron.reward.judge import Judge
from rest_megatron.reward.presets import Reward
from rest_megatron.types import Prompt, Sample, Score

logger = logging.getLogger(__name__)
Groups = Sequence[Sequence[Sample]]


def score_groups(
    groups: Groups,
    prompts: Sequence[Prompt],
    reward: Reward,
    token_table: Sequence[bytes],
    *,
    progress: float,
    step: int,
    parallel: Parallel,
) -> list[list[Score]]:
    """One Score per answer. Rank 0 scores and broadcasts, so that all ranks train on the same numbers.

    An error of a user's own reward on rank 0 is raised on every rank, and Preempted before the next answer is scored.
    """
    check = parallel.watch.check
    with parallel.watch.phase("reward"):
        return parallel.on_main(
            lambda: [
                _score_group(group, prompt, reward, token_table, progress, step, check)
                for group, prompt in zip(groups, prompts, strict=True)
            ]
        )


def _score_group(
    group: Sequence[Sample],
    prompt: Prompt,
    reward: Reward,
    token_table: Sequence[bytes],
    progress: float,
    step: int,
    check: Callable[[], None],
) -> list[Score]:
    truth = reward.read(prompt.ground_truth)
    opened = think_open(prompt.token_ids, token_table)
    scores = []
    for sample in group:
        check()
        response = answer_bytes(sample, token_table)
        scores.append(reward.score(response, truth, progress=progress, step=step, think_open=opened))
    return scores


def add_judge(
    scores: list[list[Score]],
    groups: Groups,
    prompts: Sequence[Prompt],
    judge: Judge | None,
    settings: RewardConfig,
    token_table: Sequence[bytes],
    parallel: Parallel,
) -> list[list[Score]]:
    """Scores with judge_weight times the judge's grade added; an answer without a grade keeps its score.

    judge: on rank 0. Parts gain judge, the grade or 0, and judged, whether there was one. Raises Preempted.
    """
    if settings.judge_url is None:
        return scores
    with parallel.watch.phase("judge"):
        held, check = MainOnly(parallel, judge), parallel.watch.check
        grades = iter(held.call(lambda judge: _grades(judge, groups, prompts, token_table, check)))
    return [[_judged(score, next(grades), settings.judge_weight) for score in group] for group in scores]


def _grades(
    judge: Judge, groups: Groups, prompts: Sequence[Prompt], token_table: Sequence[bytes], check: Callable[[], None]
) -> list[float | None]:
    questions = [
        (prompt.messages, answer_bytes(sample, token_table).decode("utf-8", errors="replace"))
        for prompt, group in zip(prompts, groups, strict=True)
        for sample in group
    ]
    grades = judge.grades(questions, check)
    if None in grades:
        missing = grades.count(None)
        logger.warning("the judge gave no grade for %d of %d answers: %s", missing, len(grades), judge.last_error)
    return grades


def add_overlong(
    scores: list[list[Score]], groups: Groups, settings: RewardConfig, max_new_tokens: int
) -> list[list[Score]]:
    """Scores with DAPO's soft punishment of long answers added (arXiv 2503.14476, Eq. 13).

    Of a dialogue all that follows the prompt counts, what tools said included, as it does for max_new_tokens.
    """
    if settings.overlong_buffer == 0:
        return scores
    lengths = torch.tensor([[len(sample.token_ids) for sample in group] for group in groups])
    penalties = overlong_penalty(lengths, max_new_tokens, settings.overlong_buffer, settings.overlong_penalty)
    return [
        [_with_part(s, "overlong", penalty, 1.0) for s, penalty in zip(group, own, strict=True)]
        for group, own in zip(scores, penalties.tolist(), strict=True)
    ]


def _judged(score: Score, grade: float | None, weight: float) -> Score:
    graded = _with_part(score, "judge", grade or 0.0, weight)
    return _with_part(graded, "judged", float(grade is not None), 0.0)


def _with_part(score: Score, name: str, value: float, weight: float) -> Score:
    return replace(score, total=score.total + weight * value, parts=score.parts | {name: value})


def reward_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Means over answers: total reward, correctness term, and each part, over the answers that have it."""
    metrics = {
        "reward/mean": fmean(s.total for s in scores),
        "reward/correctness": fmean(s.correctness for s in scores),
    }
    names = dict.fromkeys(name for s in scores for name in s.parts)
    return metrics | {f"reward/{name}": fmean(s.parts[name] for s in scores if name in s.parts) for name in names}


def accuracies(metrics: Mapping[str, float]) -> tuple[float | None, ...]:
    """Format rate, tool-name and parameter accuracy of a step; None where the reward does not say."""
    return tuple(metrics.get(f"reward/{name}") for name in ("format", "name", "parameter_values"))
