"""What each region has in an update: its tokens, its weight, the probability ratio, and what the clips hold."""

import torch
from torch import Tensor

from rest_kernels.reference import bounded_log_ratio, held_by_clip
from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.method.regions import Region

REGIONS = tuple(region.label for region in Region)


def token_ratios(
    old_log_probs: Tensor, log_probs: Tensor, algorithm: AlgorithmConfig, sequence_index: Tensor | None = None
) -> Tensor:
    """[T]: the probability ratio that the loss sees at each token.

    exp(log_probs - old_log_probs), the exponent held within +-20 as in the kernels. With algorithm.ratio=sequence, for
    all tokens of an answer exp of the mean difference over them (GSPO, arXiv 2507.18071).
    log_probs: [T], those of the update pass. sequence_index: int64 [T], the answer of each token.
    Raises ValueError when ratio=sequence comes without sequence_index.
    """
    gap = log_probs - old_log_probs
    if algorithm.ratio == "sequence":
        if sequence_index is None:
            raise ValueError("algorithm.ratio=sequence needs sequence_index, the answer that each token belongs to")
        means = torch.bincount(sequence_index, gap.double()) / torch.bincount(sequence_index)
        gap = means[sequence_index].to(gap.dtype)
    return bounded_log_ratio(gap).exp()


def clipped_tokens(
    old_log_probs: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    algorithm: AlgorithmConfig,
    sequence_index: Tensor | None = None,
) -> Tensor:
    """bool [T]: the tokens whose ratio a clip holds, so that they have no policy gradient; see `held_by_clip`.

    The arguments are those of `token_ratios`; advantages: [T].
    """
    return held_by_clip(
        token_ratios(old_log_probs, log_probs, algorithm, sequence_index),
        advantages,
        clip_ratio_low=algorithm.clip_ratio_low,
        clip_ratio_high=algorithm.clip_ratio_high,
        clip_ratio_dual=algorithm.clip_ratio_dual,
    )


def region_totals(
    regions: Tensor,
    weights: Tensor,
    old_log_probs: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    algorithm: AlgorithmConfig,
    sequence_index: Tensor | None = None,
) -> Tensor:
    """float64 [5, 4]: sums over this rank's tokens in each region, which add up over mini-batches and ranks.

    Rows: tokens; those the loss reads, of weight other than 0; weight; ratio and clipped, both over those read.
    regions: int64 [T] Region. weights: [T] token weights, 0 for a token the loss leaves out: the kernels give no
    log-prob for it. The other arguments are those of `clipped_tokens`.
    """
    read = weights != 0
    ratio = token_ratios(old_log_probs, log_probs, algorithm, sequence_index)
    clipped = clipped_tokens(old_log_probs, log_probs, advantages, algorithm, sequence_index)
    columns = (torch.ones_like(weights), read, weights, ratio.masked_fill(~read, 0.0), clipped & read)
    values = torch.stack([column.double() for column in columns])
    return torch.stack([values[:, regions == region].sum(dim=1) for region in Region], dim=1)


def region_metrics(totals: Tensor) -> dict[str, float]:
    """Of each region: its share of the tokens, its share of the weight, mean ratio and clip fraction.

    totals: of the global batch, see `region_totals`. What a region without tokens lacks is nan.
    """
    tokens, read, weight, ratio, clipped = totals
    named = {
        "share": tokens / tokens.sum(),
        "weight_mass": weight / weight.sum(),
        "ratio": ratio / read,
        "clip_fraction": clipped / read,
    }
    return {f"{name}/{region}": float(values[i]) for name, values in named.items() for i, region in enumerate(REGIONS)}
