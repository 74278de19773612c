"""Rewards of sampled answers, computed once and shared."""

from collections.abc import Sequence
from statistics import fmean

from rest_megatron.actor.parallel import Parallel
from rest_megatron.reward.score import GroundTruth, Score, score
from rest_megatron.rollout.engine import Sample
from rest_megatron.tokens import decode


def answer_bytes(sample: Sample, token_table: Sequence[bytes]) -> bytes:
    """The answer's text as bytes, without its stop token."""
    ids = sample.token_ids[:-1] if sample.finish_reason == "stop" else sample.token_ids
    return decode(ids, token_table)


def score_groups(
    groups: Sequence[Sequence[Sample]],
    truths: Sequence[GroundTruth],
    token_table: Sequence[bytes],
    *,
    progress: float,
    parallel: Parallel,
) -> list[list[Score]]:
    """One Score per answer. Rank 0 scores and broadcasts, so that all ranks train on the same numbers."""
    scores = None
    if parallel.rank == 0:
        scores = [
            [score(answer_bytes(sample, token_table), truth, progress=progress) for sample in group]
            for group, truth in zip(groups, truths, strict=True)
        ]
    return parallel.broadcast_object(scores)


def reward_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Means over answers: total reward, share of well-formed answers, correctness term, and each part."""
    metrics = {
        "reward/mean": fmean(s.total for s in scores),
        "reward/format": fmean(s.format > 0 for s in scores),
        "reward/correctness": fmean(s.correctness for s in scores),
    }
    return metrics | {f"reward/{name}": fmean(s.parts[name] for s in scores) for name in scores[0].parts}
