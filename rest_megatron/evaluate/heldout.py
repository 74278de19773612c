"""Held-out prompts: one sampled answer each, scored on a fixed scale."""

from collections.abc import Sequence

from rest_megatron.config.schema import RewardConfig
from rest_megatron.observe.rollouts import length_metrics
from rest_megatron.rollout.engine import number_requests
from rest_megatron.session import Session
from rest_megatron.step.dump import dump_evaluation
from rest_megatron.step.score import reward_metrics, score_groups
from rest_megatron.types import Prompt


def fixed_progress(reward: RewardConfig) -> float:
    """Where on the reward's ramp evaluations are scored, so that those of different steps compare.

    Its end; for the poster's formula, at whose end accuracy counts for nothing, its middle.
    """
    return 0.5 if reward.preset == "poster" else 1.0


def evaluate(session: Session, step: int, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Reward metrics of one answer per prompt at the training temperature, logged for `step`; {} without prompts.

    The reward is the rule's or the user's alone, without a judge's grade and without the punishment of long answers.

    The seed is always the run's, so evaluations of different steps use paired draws.
    """
    if not prompts:
        return {}
    config = session.config
    session.rollout.publish(session.actor.version)
    requests = number_requests([p.token_ids for p in prompts], config.rollout.max_new_tokens)
    groups = session.rollout.generate(requests, group_size=1, seed=config.run.seed)
    session.rollout.sleep()
    scores = score_groups(
        groups,
        prompts,
        session.reward,
        session.token_table,
        progress=fixed_progress(config.reward),
        step=config.train.steps,
        parallel=session.parallel,
    )
    if session.is_main and config.rollout.dump:
        dump_evaluation(session.run_dir, step, prompts, groups, scores, session.token_table)
    samples = [sample for group in groups for sample in group]
    metrics = reward_metrics([score for group in scores for score in group])
    metrics |= length_metrics(samples)
    session.metrics.log_evaluation(step, metrics)
    return metrics
