"""How far the engine that drew a step's answers is from the actor that trains on them.

With d = log p_actor - log p_engine of a sampled token, the actor's log-probs before the step's updates, over the
sampled tokens of all data-parallel ranks:

    mismatch/mean, mismatch/max   |d|
    mismatch/k3                   mean of e^d - 1 - d, an estimate of KL(engine || actor) on the engine's tokens
    mismatch/clipped              share of tokens with e^d above algorithm.importance_cap
    mismatch/masked_answers       share of answers that algorithm.importance_mask leaves out
    mismatch/effective_sample_size          (sum w)^2 / (n sum w^2) over tokens, w what the loss is multiplied by: e^d
                                            after the cap, 1 without one, 0 in a masked answer
    mismatch/effective_sample_size_answers  the same over answers, w the product of an answer's e^d, not capped: what
                                            an exact correction of whole answers would leave; 0 for a masked one

The effective sample size is Kish's, in importance sampling Kong's (1992, "A note on importance sampling using
standardized weights"): n samples with weights w tell about as much as that share of n from the actor itself. 1 when all
weigh the same; nan when all are masked.

While rollout/weight_lag is 0 both claim the same weights, and what remains is rounding: about 1e-6 in float32, 0.02 in
bfloat16.
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.method.importance import answer_log_ratios, importance_ratios, masked_answers, token_mismatch
from rest_megatron.types import Batch, Experience


def version_metrics(experience: Experience, version: int) -> dict[str, float]:
    """rollout/weight_version of the newest answers; rollout/weight_lag, optimizer steps from the oldest to `version`.

    version: the optimizer steps that the weights have seen which the answers train.
    """
    versions = {sample.weight_version for group in experience.groups for sample in group}
    return {"rollout/weight_version": float(max(versions)), "rollout/weight_lag": float(version - min(versions))}


def mismatch_metrics(
    experience: Experience,
    batch: Batch,
    old_log_probs: Tensor,
    algorithm: AlgorithmConfig,
    dp_group: dist.ProcessGroup,
) -> dict[str, float]:
    """The numbers above; {} where no answer is trained on. Collective.

    batch: this rank's share of `experience.trained`. old_log_probs: float32 [T] of its tokens. Where the answers come
    from several versions of the weights, mean and clipped also of each, such as mismatch/mean/version_7.
    """
    trained = experience.trained
    if not trained:
        return {}
    versions = sorted({sample.weight_version for sample in trained})
    cap, mask = algorithm.importance_cap, algorithm.importance_mask
    drawn = (old_log_probs, batch.rollout_log_probs, batch.sequence_index, len(batch.trajectories))
    answers = answer_log_ratios(*drawn, mask)
    distances = (old_log_probs - batch.rollout_log_probs).abs().double()
    highest = torch.stack([_highest(distances, 0.0), _highest(answers, -math.inf)])
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=dp_group)
    sums = _sums(batch, old_log_probs, [versions.index(s.weight_version) for s in trained], cap)
    masked = masked_answers(*drawn, mask).double().sum().view(1)
    weights = _powers(importance_ratios(*drawn, cap, mask)), _powers((answers - highest[1]).exp())
    totals = torch.cat([sums.flatten(), masked, *weights])
    dist.all_reduce(totals, group=dp_group)
    tokens, distance, k3, clipped = totals[: sums.numel()].view_as(sums)
    masked, first, second, answers_first, answers_second = totals[sums.numel() :]
    metrics = {
        "mismatch/mean": distance.sum() / tokens.sum(),
        "mismatch/max": highest[0],
        "mismatch/k3": k3.sum() / tokens.sum(),
        "mismatch/clipped": clipped.sum() / tokens.sum(),
        "mismatch/masked_answers": masked / len(trained),
        "mismatch/effective_sample_size": first**2 / (tokens.sum() * second),
        "mismatch/effective_sample_size_answers": answers_first**2 / (len(trained) * answers_second),
    }
    if len(versions) > 1:
        for name, values in (("mean", distance / tokens), ("clipped", clipped / tokens)):
            metrics |= {f"mismatch/{name}/version_{v}": values[i] for i, v in enumerate(versions)}
    return {name: float(value) for name, value in metrics.items()}


def _sums(batch: Batch, old_log_probs: Tensor, version_index: list[int], cap: float | None) -> Tensor:
    """This rank's float64 [4, versions], rows tokens, |d|, k3 and clipped.

    version_index: of each trained answer of all ranks, in their order.
    """
    found = token_mismatch(old_log_probs, batch.rollout_log_probs, cap)
    own = torch.tensor([version_index[i] for i in batch.sample_index], dtype=torch.int64, device=old_log_probs.device)
    index = own[batch.sequence_index]
    columns = (torch.ones_like(found.distance), *found)
    zeros = found.distance.new_zeros(max(version_index) + 1)
    return torch.stack([zeros.index_add(0, index, column) for column in columns])


def _highest(values: Tensor, least: float) -> Tensor:
    """`least` for no values, which a rank without answers has."""
    return torch.cat([values, values.new_full((1,), least)]).max()


def _powers(weights: Tensor) -> Tensor:
    """float64 [2]: sum w and sum w^2."""
    return torch.stack([weights.double().sum(), weights.double().square().sum()])
