"""From measured entropies to one weight per token (arXiv 2509.21826, Theorem 2 and Eq. 9).

The gradient of a response is sum_t w_t A s_t with s_t the score of token t and beta_t a bound of E||s_t||^2
(Lemma 2: beta_t = 1 - exp(-H_t) for entropy H_t). Its variance bound sum_t w_t^2 beta_t, at mean weight 1, is
smallest for

    w_t = (T / sum_u 1/beta_u) / beta_t .                                                            (Theorem 2)

In practice beta is taken per region, from the region's mean entropy. Weights that differ between tokens change the
expected gradient: a deliberate bias for less variance.

Vectors of four follow the order of `regions.Region`. All maths is float64.
"""

import torch

from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.regions import Region

ENTROPY_FLOOR = 1e-6  # nats; a region the policy is sure of has H = 0, where 1/H and 1/(1-exp(-H)) have no value
DELTA = 1e-8  # delta of w_t = w^_t / (mean(w^) + delta)


def region_sums(values: torch.Tensor, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums, counts), float64 [4] each: the sum of `values` in each region and the number of its tokens.

    values: [T], entropy in nats for one; regions: [T] Region. Both results add up over micro-batches and over ranks
    (all-reduce with SUM), which makes the mean global.
    """
    _same_shape(values=values, regions=regions)
    member = regions == torch.arange(len(Region), device=regions.device)[:, None]
    sums = torch.where(member, values.double(), 0.0).sum(dim=1)
    return sums, member.sum(dim=1).double()


def update_region_entropy(
    state: torch.Tensor | None, sums: torch.Tensor, counts: torch.Tensor, momentum: float
) -> torch.Tensor:
    """The running mean of each region's entropy after one more step: float64 [4].

    state: the last result, or None at the first step. sums, counts: of the GLOBAL batch. A region seen for the first
    time takes its mean as it is; a region absent from this step keeps its value; one never seen is nan.
    Raises ValueError when an entropy sum is not finite.
    """
    if not torch.isfinite(sums).all():
        raise ValueError(f"region entropy sums {sums.tolist()} (format, tool name, parameters, cot) are not finite")
    mean = sums / counts  # 0 / 0 = nan: absent
    if state is None:
        return mean
    blended = torch.where(state.isnan(), mean, momentum * state + (1.0 - momentum) * mean)
    return torch.where(counts > 0, blended, state)


def region_weights(region_entropy: torch.Tensor, settings: WeightsConfig) -> torch.Tensor:
    """float64 [4]: the rule of Eq. 9, normalised to mean 1 over the regions seen, then clamped.

    region_entropy: [4] in nats, nan for a region never seen; such a region weighs 1.
    Entropies below ENTROPY_FLOOR count as the floor, so the rule is finite at H = 0.
    """
    entropy = region_entropy.double()
    seen = ~entropy.isnan()
    entropy = torch.where(seen, entropy, 1.0).clamp(min=ENTROPY_FLOOR)
    rule = {"score_bound": _score_bound, "inverse_entropy": torch.reciprocal, "constant": torch.ones_like}
    weights = rule[settings.rule](entropy)
    mean = torch.where(seen, weights, 0.0).sum() / seen.sum()
    weights = (weights / mean).clamp(settings.clamp_min, settings.clamp_max)
    return torch.where(seen, weights, 1.0)


def token_weights(
    region_weights: torch.Tensor, regions: torch.Tensor, sequence_index: torch.Tensor, num_sequences: int
) -> torch.Tensor:
    """float32 [T]: each token's region weight, divided by its sequence's mean, so that every sequence has mean 1.

    region_weights: [4]; regions: [T] Region; sequence_index: [T] in [0, num_sequences), the sequence of each token.
    Rescales the gradient of a response, never its sign.
    """
    _same_shape(regions=regions, sequence_index=sequence_index)
    weights = region_weights.double()[regions]
    zeros = weights.new_zeros(num_sequences)
    sums = zeros.index_add(0, sequence_index, weights)
    counts = zeros.index_add(0, sequence_index, torch.ones_like(weights))
    mean = sums / counts  # nan for a sequence without tokens, which no token reads
    return (weights / (mean[sequence_index] + DELTA)).float()


def _score_bound(entropy: torch.Tensor) -> torch.Tensor:
    """1 / (1 - exp(-H)), exact for small H."""
    return -1.0 / torch.expm1(-entropy)


def _same_shape(**tensors: torch.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"expected one value per token in each of {', '.join(shapes)}; got shapes {shapes}")
