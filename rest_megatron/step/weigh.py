"""From this step's entropies to token weights: the pure method, with its sums made global over data-parallel ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.config.schema import AlgorithmConfig, WeightsConfig
from rest_megatron.data.answers import after_tool, turns
from rest_megatron.errors import NonFiniteError
from rest_megatron.method.curriculum import scheduled_weights
from rest_megatron.method.feedback import update_feedback
from rest_megatron.method.importance import importance_ratios
from rest_megatron.method.reference_weights import reference_weights
from rest_megatron.method.regions import Region
from rest_megatron.method.token_rules import TOKEN_RULES, TokenFacts, token_rule_weights
from rest_megatron.method.weights import (
    WeightState,
    region_means_by_response,
    region_sums,
    require_finite,
    token_statistic,
    update_running_mean,
)
from rest_megatron.method.weights import (
    token_weights as spread_weights,
)
from rest_megatron.session import Session
from rest_megatron.state import RunState
from rest_megatron.step.score import accuracies, reward_metrics
from rest_megatron.types import Batch, Experience, TokenStats


@dataclass(frozen=True)
class StepWeights:
    """The weights of one step. Means per region are [4] in the order of `Region`, nan for an absent one."""

    tokens: Tensor
    """[T] float32: weight of each of this rank's sampled tokens, mean 1 in every answer (rule reference: over those
    above 0; rules of single tokens: see `token_rules`); all 0 in an answer of which nothing is used."""
    means: dict[str, Tensor]
    """Of each region in the global batch: entropy, score_norm 1 - sum_v p_v^2 (Lemma 2: E||s_t||^2, which 1 - exp(-H)
    bounds), lm_head score_norm * |h|^2, weight; of the sampled tokens also probability and its natural log, log_prob,
    both at the rollout's temperature."""
    state: WeightState
    importance: Tensor
    """[T] float32: of `importance_ratios`."""

    @property
    def corrected(self) -> Tensor:
        """[T] float32: token weights times importance; 0 where the weight is, whatever the importance."""
        return (self.tokens * self.importance).masked_fill(self.tokens == 0, 0.0)

    def metrics(self) -> dict[str, float]:
        """Every mean of every region, the statistic the rule goes by, and how far the feedback curriculum is."""
        means: dict[str, Sequence | Tensor] = dict(self.means)
        if self.state.running_mean is not None:
            means["statistic"] = self.state.running_mean
        regions = {f"{name}/{r.label}": float(mean[r]) for name, mean in means.items() for r in Region}
        return regions | self.state.feedback.metrics()


def token_weights(
    session: Session,
    experience: Experience,
    batch: Batch,
    old: TokenStats,
    state: RunState,
    progress: float | None = None,
) -> StepWeights:
    """The weights of the step after state.step; the running means in `state` move on. Collective.

    old: statistics of the batch's tokens under the weights that drew them. progress: where on the curriculum; None:
    step / train.steps. Raises NonFiniteError on all ranks where the statistics are not finite.
    """
    group = session.parallel.dp_group
    require_finite_statistics(old, group, state.step + 1)
    tokens, state.weights = spread_step(session, experience, batch, old, state, progress)
    return describe(batch, tokens, old, state.weights, session.config.algorithm, group)


def spread_step(
    session: Session,
    experience: Experience,
    batch: Batch,
    stats: TokenStats | None,
    state: RunState,
    progress: float | None = None,
) -> tuple[Tensor, WeightState]:
    """`spread` for the step after state.step; progress: as in `token_weights`."""
    step, config = state.step + 1, session.config
    return spread(
        batch,
        stats,
        state.weights,
        progress=step / config.train.steps if progress is None else progress,
        step=step,
        accuracy=accuracies(reward_metrics(experience.all_scores)),
        settings=config.weights,
        token_table=session.token_table,
        dp_group=session.parallel.dp_group,
    )


def spread(
    batch: Batch,
    stats: TokenStats | None,
    state: WeightState,
    *,
    progress: float,
    step: int,
    accuracy: Sequence[float | None],
    settings: WeightsConfig,
    token_table: Sequence[bytes],
    dp_group: dist.ProcessGroup,
) -> tuple[Tensor, WeightState]:
    """`StepWeights.tokens` of this rank's answers, and the state for the next step. Collective.

    stats: of each token under the sampling weights; None where the weights `stand_still`. state: the last step's. step:
    counts from 1, as in the published code. accuracy: format rate, tool-name and parameter accuracy of the step's
    answers, None for what was not measured; the feedback curriculum follows them.
    """
    if settings.curriculum == "feedback":
        state = replace(state, feedback=update_feedback(state.feedback, accuracy, settings))
    if settings.rule == "reference":
        return _reference(batch, step, token_table), state
    if stats is None:
        means = torch.tensor(state.running_mean, dtype=torch.float64, device=batch.regions.device)
    elif settings.rule in TOKEN_RULES:
        return _by_token(batch, stats, settings, dp_group), state
    else:
        statistic = token_statistic(settings.rule, stats.entropy, stats.collision, stats.hidden_norm_squared)
        means, state = _region_means(batch, statistic, state, settings, dp_group)
    weights = scheduled_weights(means, progress, state, settings)
    return spread_weights(weights, batch.regions, batch.sequence_index, len(batch.trajectories)), state


def stand_still(batch: Batch, state: WeightState, settings: WeightsConfig, dp_group: dist.ProcessGroup) -> bool:
    """Whether this step's weights do not depend on its statistics: the base weights of its regions are frozen.

    Collective.
    """
    if settings.rule == "reference":
        return True
    if settings.rule in TOKEN_RULES or settings.scope == "response" or settings.freeze_after == 0:
        return False
    if state.running_mean is None or state.steps is None:
        return False
    counts = torch.bincount(batch.regions, minlength=len(Region))
    dist.all_reduce(counts, group=dp_group)
    return all(
        steps >= settings.freeze_after or not count for steps, count in zip(state.steps, counts.tolist(), strict=True)
    )


def describe(
    batch: Batch,
    tokens: Tensor,
    stats: TokenStats,
    state: WeightState,
    algorithm: AlgorithmConfig,
    dp_group: dist.ProcessGroup,
) -> StepWeights:
    """The weights `tokens` with what the metrics say of them and of the statistics. Collective."""
    score_norm = 1.0 - stats.collision
    described = {
        "entropy": stats.entropy,
        "score_norm": score_norm,
        "lm_head": score_norm * stats.hidden_norm_squared,
        "weight": tokens,
        "probability": stats.log_probs.exp(),
        "log_prob": stats.log_probs,
    }
    measured = global_means(described, batch.regions, dp_group)
    return StepWeights(tokens, measured, state, importance(batch, stats.log_probs, algorithm))


def importance(batch: Batch, log_probs: Tensor, algorithm: AlgorithmConfig) -> Tensor:
    """[T] float32: what corrects for the engine's log-probs being others than the actor's `log_probs`."""
    return importance_ratios(
        log_probs,
        batch.rollout_log_probs,
        batch.sequence_index,
        len(batch.trajectories),
        algorithm.importance_cap,
        algorithm.importance_mask,
    )


def global_means(values: Mapping[str, Tensor], regions: Tensor, dp_group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The mean [4] of each [T] vector over the tokens of a region on all data-parallel ranks; nan for an absent one."""
    pairs = [region_sums(value, regions) for value in values.values()]
    totals = torch.stack([torch.stack(pair) for pair in pairs])
    dist.all_reduce(totals, group=dp_group)
    return {name: sums / counts for name, (sums, counts) in zip(values, totals, strict=True)}


def require_finite_statistics(stats: TokenStats, dp_group: dist.ProcessGroup, step: int) -> None:
    """Raises NonFiniteError on all ranks when the policy itself gives some token of one of them no finite numbers."""
    broken = (~torch.isfinite(torch.stack(stats)).all(0)).sum()
    dist.all_reduce(broken, group=dp_group)
    if int(broken):
        raise NonFiniteError(
            f"step {step}: the policy's log-prob, entropy or hidden state is not finite for {int(broken)} tokens; "
            "its weights have left the range of model.dtype. Resume from an earlier checkpoint with a lower optim.lr"
        )


def _region_means(
    batch: Batch, statistic: Tensor, state: WeightState, settings: WeightsConfig, dp_group: dist.ProcessGroup
) -> tuple[Tensor, WeightState]:
    """Means of the rule's statistic: [4] of all ranks' answers and running over steps, or [N, 4] of each answer."""
    totals = torch.stack(region_sums(statistic, batch.regions))
    dist.all_reduce(totals, group=dp_group)
    require_finite(totals[0])
    if settings.scope == "response":
        means = region_means_by_response(statistic, batch.regions, batch.sequence_index, len(batch.trajectories))
        return means, state
    sums, counts = totals
    state = update_running_mean(state, sums, counts, settings)
    return totals.new_tensor(state.running_mean), state


def _by_token(batch: Batch, stats: TokenStats, settings: WeightsConfig, dp_group: dist.ProcessGroup) -> Tensor:
    own = stats.entropy.cpu()
    parts = [own] * dist.get_world_size(dp_group)
    dist.all_gather_object(parts, own, group=dp_group)
    later = [late for t in batch.trajectories for late in after_tool(t.response_ids, t.response_mask)]
    facts = TokenFacts(
        stats.entropy,
        stats.log_probs,
        batch.sequence_index,
        len(batch.trajectories),
        torch.tensor(later, dtype=torch.bool, device=stats.entropy.device),
        torch.cat(parts).to(stats.entropy.device),
    )
    return token_rule_weights(facts, settings)


def _reference(batch: Batch, step: int, token_table: Sequence[bytes]) -> Tensor:
    answers = ((t.response_ids, turn) for t in batch.trajectories for turn in turns(t.response_ids, t.response_mask))
    pieces = ([token_table[token] for token in ids[turn]] for ids, turn in answers)
    weights = [weight for own in pieces for weight in reference_weights(own, step=step)]
    return torch.tensor(weights, dtype=torch.float32, device=batch.regions.device)
