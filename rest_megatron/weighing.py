"""From this step's entropies to token weights: the pure method, with its sums made global over data-parallel ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.actor.actor import TokenStats
from rest_megatron.batch import Batch
from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.curriculum import anneal
from rest_megatron.method.regions import Region
from rest_megatron.method.weights import region_sums, region_weights, token_weights, update_region_entropy


@dataclass(frozen=True)
class StepWeights:
    """Vectors of four follow the order of `Region`."""

    tokens: Tensor
    """[T] float32: weight of each of this rank's response tokens, mean 1 in every answer."""
    by_region: Tensor
    """[4]: what the tokens of a region weighed before that normalisation."""
    entropy: Tensor
    """[4]: mean entropy of each region in this step's global batch, nan for an absent one."""
    score_norm: Tensor
    """[4]: likewise E||s_t||^2 = 1 - sum_v p_v^2, the exact quantity that 1 - exp(-H) bounds (Lemma 2)."""
    running_entropy: Tensor
    """[4]: its running mean, which the weights follow; pass it to the next step."""

    def metrics(self) -> dict[str, float]:
        """Entropy, score norm and weight of each region."""
        named = {"entropy": self.entropy, "score_norm": self.score_norm, "weight": self.by_region}
        return {f"{name}/{r.name.lower()}": float(values[r]) for name, values in named.items() for r in Region}


def weigh(
    batch: Batch,
    old: TokenStats,
    running_entropy: Tensor | None,
    progress: float,
    settings: WeightsConfig,
    dp_group: dist.ProcessGroup,
) -> StepWeights:
    """Token weights of this rank's answers. old: of each token; running_entropy: the last step's, None at first."""
    sums, counts = region_sums(old.entropy, batch.regions)
    score_sums, _ = region_sums(1.0 - old.collision, batch.regions)
    totals = torch.stack([sums, counts, score_sums])
    dist.all_reduce(totals, group=dp_group)
    sums, counts, score_sums = totals
    running_entropy = update_region_entropy(running_entropy, sums, counts, settings.entropy_momentum)
    by_region = anneal(region_weights(running_entropy, settings), progress, settings)
    tokens = token_weights(by_region, batch.regions, batch.sequence_index, len(batch.trajectories))
    return StepWeights(tokens, by_region, sums / counts, score_sums / counts, running_entropy)
