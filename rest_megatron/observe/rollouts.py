"""What a step's answers look like: their metrics, and a dump of every one."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.parallel import Parallel
from rest_megatron.answers import answer_bytes, think_open
from rest_megatron.collecting import Experience
from rest_megatron.data.prompts import Prompt
from rest_megatron.method.advantages import zero_variance_groups
from rest_megatron.method.regions import Region
from rest_megatron.reward.score import Score
from rest_megatron.rollout.engine import Sample


def length_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean length in tokens, and the share of answers that ended by themselves."""
    return {
        "rollout/length": fmean(len(s.token_ids) for s in samples),
        "rollout/stopped": fmean(s.finish_reason == "stop" for s in samples),
    }


def rollout_metrics(experience: Experience) -> dict[str, float]:
    """Length and end of the answers, speed of sampling, groups that teach nothing, and groups trained on."""
    samples = [sample for group in experience.groups for sample in group]
    return length_metrics(samples) | {
        "rollout/tokens_per_second": sum(len(s.token_ids) for s in samples) / experience.seconds,
        "rollout/answers": float(len(samples)),
        "rollout/zero_variance_groups": float(zero_variance_groups(experience.totals).double().mean()),
        "rollout/groups_trained": float(experience.num_trained),
        "rollout/rounds": float(experience.rounds),
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
    experience: Experience,
    token_table: Sequence[bytes],
    vectors: Mapping[int, Mapping[str, list]],
) -> None:
    """Write every answer of a step with its score to run_dir/rollouts/step-N.jsonl, one row per answer.

    vectors: what is known of each token of an answer, by the answer's number; nothing for one not trained on.
    """
    rows = answer_rows(experience.prompts, experience.groups, experience.scores, token_table)
    advantages = experience.advantages.flatten().tolist()
    _write(
        run_dir / "rollouts" / f"step-{step}.jsonl",
        (
            row | {"advantage": advantage} | _named_regions(vectors.get(number, {}))
            for number, (row, advantage) in enumerate(zip(rows, advantages, strict=True))
        ),
    )


def dump_evaluation(
    run_dir: Path,
    step: int,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Sample]],
    scores: Sequence[Sequence[Score]],
    token_table: Sequence[bytes],
) -> None:
    """Write the answers to the held-out prompts after `step` steps to run_dir/rollouts/eval-N.jsonl."""
    _write(run_dir / "rollouts" / f"eval-{step}.jsonl", answer_rows(prompts, groups, scores, token_table))


def answer_rows(
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Sample]],
    scores: Sequence[Sequence[Score]],
    token_table: Sequence[bytes],
) -> Iterator[dict]:
    """One row per answer, prompt after prompt: the prompt's row number, the answer and its score."""
    for prompt, group, own in zip(prompts, groups, scores, strict=True):
        opened = think_open(prompt.token_ids, token_table)
        for sample, score in zip(group, own, strict=True):
            yield {
                "prompt": prompt.index,
                "think_open": opened,
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
            }


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _named_regions(vectors: Mapping[str, list]) -> dict[str, list]:
    return {**vectors, "regions": [Region(r).label for r in vectors["regions"]]} if vectors else {}
