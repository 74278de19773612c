"""The dump of a step: every answer with its score, and what is known of its tokens."""

from rest_megatron.actor.actor import Update
from rest_megatron.observe.regions import clipped_tokens, token_ratios
from rest_megatron.observe.rollouts import dump_rollouts
from rest_megatron.session import Session
from rest_megatron.step.weigh import StepWeights
from rest_megatron.types import Batch, Experience, TokenStats


def dump_step(
    session: Session, step: int, experience: Experience, vectors: dict[int, dict[str, list]] | None = None
) -> None:
    """Write the answers of a step to run.dir/rollouts/step-N.jsonl, on rank 0. vectors: of `token_vectors`."""
    if session.is_main:
        dump_rollouts(session.run_dir, step, experience, session.token_table, vectors or {})


def token_vectors(
    session: Session, batch: Batch, old: TokenStats, weights: StepWeights, done: Update
) -> dict[int, dict[str, list]]:
    """What is known of every token, by the answer's number among those trained on: of all answers on rank 0.

    Collective.
    """
    ratio_of = (session.config.algorithm, batch.sequence_index)
    vectors = {
        "regions": batch.regions,
        "entropy": old.entropy,
        "weights": weights.tokens,
        "importance": weights.importance,
        "ratio": token_ratios(old.log_probs, done.log_probs, *ratio_of),
        "clipped": clipped_tokens(old.log_probs, done.log_probs, batch.advantages, *ratio_of),
    }
    parts = {name: vector.cpu().split(batch.lengths) for name, vector in vectors.items()}
    mine = {
        index: {name: part[i].tolist() for name, part in parts.items()} for i, index in enumerate(batch.sample_index)
    }
    gathered = session.parallel.gather_to_main(mine)
    return {index: values for part in gathered for index, values in part.items()}
