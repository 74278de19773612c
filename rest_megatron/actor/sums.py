"""What an update's losses count, added up over micro-batches and ranks and told per token."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rest_megatron.distributed.parallel import Parallel

POLICY_SUMS = ("loss", "num_tokens", "clip_fraction", "clip_fraction_low", "approx_kl", "ratio", "entropy")
SUPERVISED_SUMS = ("loss", "num_tokens")
_KERNEL_NAMES = {"clip_fraction": "clipped", "clip_fraction_low": "clipped_low"}


def stacked(sums: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """float64 [len(names)]: of what the kernels count in one micro-batch, in this order."""
    return torch.stack([sums[_KERNEL_NAMES.get(name, name)].detach().double() for name in names])


def global_metrics(
    sums: Sequence[Tensor], names: Sequence[str], left_out: Tensor | None, parallel: Parallel
) -> dict[str, float]:
    """Sums [len(names)] of each micro-batch on the last stage -> global means per token, on every rank. Collective.

    left_out: of `Learning`. Clip fractions are of all tokens with a weight, for one whose answer was left out is never
    clipped; the other means are of those that were read, and not there without any. left_out is told as a share, too.
    """
    totals = torch.stack(list(sums)).sum(0) if sums else torch.zeros(len(names), dtype=torch.float64)
    others = torch.zeros((), dtype=torch.float64) if left_out is None else left_out
    totals = torch.cat([totals.to(parallel.device), others.to(parallel.device).view(1)])
    if parallel.is_last_stage:
        dist.all_reduce(totals, group=parallel.dp_group)
    *found, unread = parallel.broadcast_from_last_stage(totals).tolist()
    values = dict(zip(names, found, strict=True))
    loss, read = values.pop("loss"), values.pop("num_tokens")
    metrics = {"actor/loss": loss}
    for name, value in values.items():
        if name in _KERNEL_NAMES:
            metrics[f"actor/{name}"] = value / max(1.0, read + unread)
        elif read > 0:
            metrics[f"actor/{name}"] = value / read
    if left_out is not None:
        metrics["actor/left_out"] = unread / max(1.0, read + unread)
    return metrics
