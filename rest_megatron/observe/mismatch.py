"""How far the engine that drew a step's answers is from the actor that trains on them.

With d = log p_actor - log p_engine of a sampled token, the actor's log-probs before the step's updates, over the
sampled tokens of all data-parallel ranks:

    mismatch/mean, mismatch/max   |d|
    mismatch/k3                   mean of e^d - 1 - d, an estimate of KL(engine || actor) on the engine's tokens
    mismatch/clipped              share of tokens with e^d above algorithm.importance_cap
    mismatch/masked_answers       share of answers that algorithm.importance_mask leaves out

While rollout/weight_lag is 0 both claim the same weights, and what remains is rounding: about 1e-6 in float32, 0.02 in
bfloat16.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.method.importance import masked_answers, token_mismatch
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
    sums, masked = _sums(batch, old_log_probs, [versions.index(s.weight_version) for s in trained], algorithm)
    totals = torch.cat([sums.flatten(), masked])
    highest = torch.cat([(old_log_probs - batch.rollout_log_probs).abs(), old_log_probs.new_zeros(1)]).max()
    dist.all_reduce(totals, group=dp_group)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=dp_group)
    tokens, distance, k3, clipped = totals[:-1].view_as(sums)
    metrics = {
        "mismatch/mean": distance.sum() / tokens.sum(),
        "mismatch/max": highest,
        "mismatch/k3": k3.sum() / tokens.sum(),
        "mismatch/clipped": clipped.sum() / tokens.sum(),
        "mismatch/masked_answers": totals[-1] / len(trained),
    }
    if len(versions) > 1:
        for name, values in (("mean", distance / tokens), ("clipped", clipped / tokens)):
            metrics |= {f"mismatch/{name}/version_{v}": values[i] for i, v in enumerate(versions)}
    return {name: float(value) for name, value in metrics.items()}


def _sums(
    batch: Batch, old_log_probs: Tensor, version_index: list[int], algorithm: AlgorithmConfig
) -> tuple[Tensor, Tensor]:
    """This rank's float64 [4, versions], rows tokens, |d|, k3, clipped, and [1], its masked answers.

    version_index: of each trained answer of all ranks, in their order.
    """
    found = token_mismatch(old_log_probs, batch.rollout_log_probs, algorithm.importance_cap)
    own = torch.tensor([version_index[i] for i in batch.sample_index], dtype=torch.int64, device=old_log_probs.device)
    index = own[batch.sequence_index]
    columns = (torch.ones_like(found.distance), *found)
    zeros = found.distance.new_zeros(max(version_index) + 1)
    masked = masked_answers(
        old_log_probs,
        batch.rollout_log_probs,
        batch.sequence_index,
        len(batch.trajectories),
        algorithm.importance_mask,
    )
    return torch.stack([zeros.index_add(0, index, column) for column in columns]), masked.double().sum().view(1)
