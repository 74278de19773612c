"""What a step's answers look like: their metrics, and a dump of every one."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.parallel import Parallel
from rest_megatron.data.prompts import Prompt
from rest_megatron.method.advantages import zero_variance_groups
from rest_megatron.reward.score import Score
from rest_megatron.rollout.engine import Sample
from rest_megatron.scoring import answer_bytes


def length_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean length in tokens, and the share of answers that ended by themselves."""
    return {
        "rollout/length": fmean(len(s.token_ids) for s in samples),
        "rollout/stopped": fmean(s.finish_reason == "stop" for s in samples),
    }


def rollout_metrics(samples: Sequence[Sample], totals: Tensor, seconds: float) -> dict[str, float]:
    """Length and end of the answers, speed of sampling, and the share of groups that teach nothing.

    totals: rewards [prompts, group_size]; seconds: how long sampling took.
    """
    return length_metrics(samples) | {
        "rollout/tokens_per_second": sum(len(s.token_ids) for s in samples) / seconds,
        "rollout/zero_variance_groups": float(zero_variance_groups(totals).double().mean()),
    }


def log_prob_difference(log_probs: Tensor, rollout_log_probs: Tensor, parallel: Parallel) -> float:
    """Largest |actor - engine| log-prob of a sampled token, over all ranks: both claim the same weights.

    Both vectors are float32 over this rank's response tokens, of which there may be none.
    """
    difference = torch.cat([(log_probs - rollout_log_probs).abs(), log_probs.new_zeros(1)]).max()
    dist.all_reduce(difference, op=dist.ReduceOp.MAX, group=parallel.dp_group)
    return float(difference)


def dump_rollouts(
    run_dir: Path,
    step: int,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Sample]],
    scores: Sequence[Sequence[Score]],
    advantages: Tensor,
    token_table: Sequence[bytes],
) -> None:
    """Write every answer of a step with its score to run_dir/rollouts/step-N.jsonl, one row per answer.

    advantages: [answers], prompt after prompt.
    """
    directory = run_dir / "rollouts"
    directory.mkdir(exist_ok=True)
    answers = [answer for rows in zip(prompts, groups, scores, strict=True) for answer in _answers(*rows)]
    with open(directory / f"step-{step}.jsonl", "w", encoding="utf-8") as file:
        for (prompt, sample, score), advantage in zip(answers, advantages.tolist(), strict=True):
            row = {
                "prompt": prompt.index,
                "ids": sample.token_ids,
                "log_probs": sample.log_probs,
                "text": answer_bytes(sample, token_table).decode("utf-8", errors="replace"),
                "finish_reason": sample.finish_reason,
                "weight_version": sample.weight_version,
                "score": score.total,
                "format": score.format,
                "correctness": score.correctness,
                "parts": score.parts,
                "reason": score.reason,
                "advantage": advantage,
            }
            file.write(json.dumps(row) + "\n")


def _answers(prompt: Prompt, group: Sequence[Sample], scores: Sequence[Score]) -> list[tuple[Prompt, Sample, Score]]:
    return [(prompt, sample, score) for sample, score in zip(group, scores, strict=True)]
