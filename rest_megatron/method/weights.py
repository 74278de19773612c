"""From measured entropies to one weight per token (arXiv 2509.21826, Lemma 2, Theorem 2 and Eq. 9).

The gradient of an answer is sum_t w_t A s_t with s_t the score of token t and beta_t a bound of E||s_t||^2. Its
variance bound sum_t w_t^2 beta_t, at mean weight 1, is smallest for

    w_t = (T / sum_u 1/beta_u) / beta_t .                                                            (Theorem 2)

With entropy H, collision c = sum_v p_v^2 and last hidden state h, E||s_t||^2 is exactly 1 - c for the logits and
(1 - c) ||h||^2 for the LM head, and 1 - c <= 1 - exp(-H) (Lemma 2). In practice beta is taken per region, from the
mean of a statistic over the region's tokens, of the whole batch or of one answer: RULES below (Eq. 9).

Weights that differ between tokens change the expected gradient: a deliberate bias for less variance.

Vectors of four follow the order of `regions.Region`. All maths is float64. The published code's own weights, rule
`reference`, take no statistics and are in `reference_weights.py`.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rest_megatron.config.method import WeightsConfig, WeightsRule
from rest_megatron.method.feedback import FeedbackState
from rest_megatron.method.means import mean_by
from rest_megatron.method.measured import MeasuredRegions
from rest_megatron.method.regions import Region

STATISTIC_FLOOR = 1e-6  # a region the policy is sure of has H = 0 and c = 1, where no rule has a value
DELTA = 1e-8  # delta of w_t = w^_t / (mean(w^) + delta)


@dataclass(frozen=True)
class Rule:
    """How the weight of a region follows from what was measured at its tokens (Eq. 9)."""

    formula: str
    """The weight, as the help of `weights.rule` writes it."""
    reads: Set[str]
    """What `statistic` looks at, by the names of `token_statistic`'s arguments."""
    statistic: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From entropy H, collision c and ||h||^2 of each token, float64 [T] each, to what is averaged over a region."""
    weight: Callable[[Tensor], Tensor]
    """From the mean of each region, float64, to its weight before these are normalised."""


# expm1 keeps 1 - exp(-H) exact for small H.
_SCORE_BOUND = Rule("1/(1-exp(-H))", {"entropy"}, lambda h, c, norm: h, lambda mean: -1.0 / torch.expm1(-mean))
# A new rule is a row here and a choice of `weights.rule`.
RULES: dict[WeightsRule, Rule] = {
    "score_bound": _SCORE_BOUND,
    "measured": _SCORE_BOUND,  # before the first measurement, and what `measured_weights` starts from
    "inverse_entropy": Rule("1/H", {"entropy"}, lambda h, c, norm: h, torch.reciprocal),
    "collision": Rule("1/(1-c)", {"collision"}, lambda h, c, norm: 1.0 - c, torch.reciprocal),
    "lm_head": Rule(
        "1/((1-c)|h|^2)",
        {"collision", "hidden_norm_squared"},
        lambda h, c, norm: (1.0 - c) * norm,
        torch.reciprocal,
    ),
    "constant": Rule("1", set(), lambda h, c, norm: torch.ones_like(h), torch.ones_like),
}


@dataclass(frozen=True)
class WeightState:
    """What the weights of one step hand to the next. `to_dict` is plain JSON, from which a run resumes exactly."""

    running_mean: tuple[float, ...] | None = None
    """Of the rule's statistic in each region; nan for a region never seen."""
    steps: tuple[int, ...] | None = (0,) * len(Region)
    """In how many steps each region was seen; None in a run begun by version 0.1.0, whose mean moves for ever."""
    feedback: FeedbackState = field(default_factory=FeedbackState)
    measured: MeasuredRegions | None = None
    """Of rule `measured`, the last measurement."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        mean = None if self.running_mean is None else [None if x != x else x for x in self.running_mean]
        steps = {} if self.steps is None else {"steps": list(self.steps)}
        measured = {} if self.measured is None else {"measured": self.measured.to_dict()}
        return {"running_mean": mean, **steps, "feedback": self.feedback.to_dict(), **measured}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WeightState":
        """What `to_dict` gave."""
        mean = values["running_mean"]
        mean = None if mean is None else tuple(float("nan") if x is None else x for x in mean)
        steps = tuple(values["steps"]) if "steps" in values else None
        measured = MeasuredRegions.from_dict(values["measured"]) if "measured" in values else None
        return cls(mean, steps, FeedbackState.from_dict(values["feedback"]), measured)


def token_statistic(rule: WeightsRule, entropy: Tensor, collision: Tensor, hidden_norm_squared: Tensor) -> Tensor:
    """float64 [T]: what `rule` averages over a region's tokens, see RULES.

    entropy: [T] in nats; collision: [T] in [0, 1]; hidden_norm_squared: [T], ||h||^2. A rule reads only its own.
    Raises ValueError for a rule without a statistic.
    """
    return _rule(rule).statistic(entropy.double(), collision.double(), hidden_norm_squared.double())


def region_sums(values: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """(sums, counts), float64 [4] each: the sum of `values` in each region and the number of its tokens.

    values: [T], entropy in nats for one; regions: [T] Region. Both results add up over micro-batches and over ranks
    (all-reduce with SUM), which makes the mean global.
    """
    _same_shape(values=values, regions=regions)
    member = regions == torch.arange(len(Region), device=regions.device)[:, None]
    sums = torch.where(member, values.double(), 0.0).sum(dim=1)
    return sums, member.sum(dim=1).double()


def region_means_by_response(values: Tensor, regions: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """float64 [N, 4]: the mean of `values` in each region of each answer, nan for a region it does not have.

    values: [T]; regions: [T] Region; sequence_index: [T] in [0, num_sequences), the answer of each token.
    """
    _same_shape(values=values, regions=regions, sequence_index=sequence_index)
    cell = sequence_index * len(Region) + regions
    return mean_by(cell, values, num_sequences * len(Region)).view(num_sequences, len(Region))


def update_running_mean(state: WeightState, sums: Tensor, counts: Tensor, settings: WeightsConfig) -> WeightState:
    """The running mean of each region's statistic after one more step.

    With freeze_after = k it is the equal mean over the first k steps in which a region is seen, then it stands still:
    the statistic of a region falls as the policy learns it, so a mean that moves on gives a learnt region ever more
    weight, against the curriculum (Section 3.2.2). With freeze_after = 0 it moves on: a new mean counts 1 - momentum.

    sums, counts: float64 [4], of the GLOBAL batch. A region seen for the first time takes its mean as it is; a region
    absent from this step keeps its value; one never seen is nan. Raises ValueError when a sum is not finite.
    """
    require_finite(sums)
    seen, mean = counts > 0, sums / counts  # 0 / 0 = nan: absent
    steps = None if state.steps is None else torch.tensor(state.steps, device=sums.device) + seen
    if state.running_mean is not None:
        last = mean.new_tensor(state.running_mean)
        rate = _rate(steps, settings).to(mean)
        blended = torch.where(last.isnan(), mean, (1.0 - rate) * last + rate * mean)
        mean = torch.where(seen, blended, last)
    return replace(state, running_mean=tuple(mean.tolist()), steps=None if steps is None else tuple(steps.tolist()))


def _rate(steps: Tensor | None, settings: WeightsConfig) -> Tensor:
    """How much a step's mean counts against the running one, [4], after regions have been seen in `steps` steps."""
    if steps is None or settings.freeze_after == 0:
        return torch.tensor(1.0 - settings.momentum, dtype=torch.float64)
    return torch.where(steps > settings.freeze_after, 0.0, 1.0 / steps.double())


def region_weights(statistic: Tensor, settings: WeightsConfig) -> Tensor:
    """The rule of Eq. 9, normalised to mean 1 over the regions seen, then clamped: float64 of the input's shape.

    statistic: [4], or [N, 4] with a row per answer; nan for a region not seen, which weighs 1.
    Statistics below STATISTIC_FLOOR count as the floor, so the weight of a sure region is finite.
    Raises ValueError for a rule without a statistic.
    """
    statistic = statistic.double()
    seen = ~statistic.isnan()
    weights = _rule(settings.rule).weight(torch.where(seen, statistic, 1.0).clamp(min=STATISTIC_FLOOR))
    mean = torch.where(seen, weights, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    weights = (weights / mean).clamp(settings.clamp_min, settings.clamp_max)
    return torch.where(seen, weights, 1.0)


def region_switches(settings: WeightsConfig) -> Tensor:
    """float64 [4]: 1 for a region whose tokens are trained on, 0 for one switched off; a factor of region weights."""
    used = {
        Region.FORMAT: settings.use_format,
        Region.TOOL_NAME: settings.use_tool_name,
        Region.PARAMETERS: settings.use_parameters,
        Region.COT: settings.use_cot,
    }
    return torch.tensor([used[region] for region in Region], dtype=torch.float64)


def token_weights(region_weights: Tensor, regions: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """float32 [T]: each token's region weight, divided by its answer's mean, so that every answer has mean 1.

    region_weights: [4], or [num_sequences, 4] with a row per answer, at least 0. regions: [T] Region.
    sequence_index: [T] in [0, num_sequences), the answer of each token. The mean is over all tokens of an answer;
    one whose tokens all weigh 0 keeps its zeros. Rescales the gradient of an answer, never its sign.
    """
    _same_shape(regions=regions, sequence_index=sequence_index)
    weights = region_weights.double().expand(num_sequences, -1)[sequence_index, regions]
    mean = mean_by(sequence_index, weights, num_sequences)
    return (weights / (mean[sequence_index] + DELTA)).float()


def require_finite(sums: Tensor) -> None:
    """Raises ValueError unless all `sums` [4] over regions are finite. With global sums, on all ranks alike."""
    if not torch.isfinite(sums).all():
        raise ValueError(f"region sums {sums.tolist()} (format, tool name, parameters, cot) are not finite")


def _rule(name: WeightsRule) -> Rule:
    if name not in RULES:
        raise ValueError(f"rule {name!r} does not follow from statistics; use one of {', '.join(RULES)}")
    return RULES[name]


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one value per token in each of {', '.join(shapes)}; got shapes {shapes}")
