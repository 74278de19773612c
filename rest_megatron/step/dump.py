"""The dump of a step's answers: a row of JSON for each, in the files that `rest_megatron.step.replay` reads."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rest_megatron.data.answers import answer_bytes, think_open
from rest_megatron.method.regions import Region
from rest_megatron.session import Session
from rest_megatron.types import Experience, Prompt, Sample, Score


def dump_step(
    session: Session, step: int, experience: Experience, vectors: dict[int, dict[str, list]] | None = None
) -> None:
    """Write the answers of a step to run.dir/rollouts/step-N.jsonl, on rank 0. vectors: as in `experience_rows`."""
    if session.is_main:
        dump_rollouts(session.run_dir, step, experience, session.token_table, vectors or {})


def dump_rollouts(
    run_dir: Path,
    step: int,
    experience: Experience,
    token_table: Sequence[bytes],
    vectors: Mapping[int, Mapping[str, list]],
) -> None:
    """Write every answer of a step with its score to run_dir/rollouts/step-N.jsonl; see `experience_rows`."""
    _write(run_dir / "rollouts" / f"step-{step}.jsonl", experience_rows(experience, token_table, vectors))


def experience_rows(
    experience: Experience, token_table: Sequence[bytes], vectors: Mapping[int, Mapping[str, list]]
) -> Iterator[dict]:
    """One row per answer of a step, which hold all that a replay needs.

    vectors: what is known of each sampled token of an answer, by the answer's number; nothing for one not trained on.
    """
    rows = answer_rows(experience.prompts, experience.groups, experience.scores, token_table)
    samples = (sample for group in experience.groups for sample in group)
    advantages = experience.advantages.flatten().tolist()
    num_trained = len(experience.trained)
    for number, (row, sample, advantage) in enumerate(zip(rows, samples, advantages, strict=True)):
        known = {name: _spread(values, sample) for name, values in _named_regions(vectors.get(number, {})).items()}
        yield row | {"trained": number < num_trained, "rounds": experience.rounds, "advantage": advantage} | known


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
    """One row per answer, prompt after prompt: the prompt, the answer and its score.

    The prompt is named by its row number in data.train, its number of tokens and their `prompt_hash`. response_mask:
    only where not all ids were sampled.
    """
    for prompt, group, own in zip(prompts, groups, scores, strict=True):
        about = {
            "prompt": prompt.index,
            "prompt_tokens": len(prompt.token_ids),
            "prompt_hash": prompt_hash(prompt.token_ids),
            "think_open": think_open(prompt.token_ids, token_table),
        }
        for sample, score in zip(group, own, strict=True):
            mask = {"response_mask": sample.response_mask} if sample.response_mask else {}
            yield {
                **about,
                "ids": sample.token_ids,
                **mask,
                "log_probs": sample.log_probs,
                "text": answer_bytes(sample, token_table).decode("utf-8", errors="replace"),
                "finish_reason": sample.finish_reason,
                "weight_version": sample.weight_version,
                **score.to_dict(),
            }


def prompt_hash(token_ids: Sequence[int]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the ids in decimal, with a blank between two."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()[:16]


def _spread(values: Sequence, sample: Sample) -> list:
    """One value for each id, null where it was not sampled, from one for each sampled id."""
    if not sample.response_mask:
        return list(values)
    own = iter(values)
    return [next(own) if sampled else None for sampled in sample.response_mask]


def write_rows(file: TextIO, rows: Iterable[dict]) -> None:
    """Write each row as a line of JSON."""
    file.writelines(json.dumps(row) + "\n" for row in rows)


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        write_rows(file, rows)


def _named_regions(vectors: Mapping[str, list]) -> dict[str, list]:
    """The vectors with the names of the regions for their numbers."""
    return {**vectors, "regions": [Region(r).label for r in vectors["regions"]]} if vectors else {}
