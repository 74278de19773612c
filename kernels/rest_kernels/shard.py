"""Which columns of the vocabulary this rank holds, and the exchange of statistics between the ranks."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """Columns [start, start + num_columns) of a vocabulary of `vocab_size` ids; `group` None: all of them."""

    start: int
    num_columns: int
    vocab_size: int
    group: dist.ProcessGroup | None

    def gather(self, stats: Tensor) -> Tensor:
        """Statistics [N, k] of every shard, in rank order: [shards, N, k]. One collective; none without a group."""
        if self.group is None:
            return stats.unsqueeze(0)
        num_shards = self.group.size()
        gathered = stats.new_empty(num_shards * stats.shape[0], stats.shape[1])
        dist.all_gather_into_tensor(gathered, stats.contiguous(), group=self.group)
        return gathered.view(num_shards, *stats.shape)


def vocab_shard(local_size: int, vocab_size: int | None, group: dist.ProcessGroup | None, device) -> VocabShard:
    """Place `local_size` columns after those of the earlier ranks of `group`.

    Shards may differ in size, so ranks exchange their sizes (one integer each). Columns at or beyond `vocab_size`
    are padding; None means there is none. Raises ValueError when the shards do not cover `vocab_size`.
    """
    sizes = [local_size]
    rank = 0
    if group is not None:
        local = torch.tensor([local_size], dtype=torch.int64, device=device)
        gathered = torch.empty(group.size(), dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(gathered, local, group=group)
        sizes, rank = gathered.tolist(), group.rank()
    start, total = sum(sizes[:rank]), sum(sizes)
    if vocab_size is None:
        vocab_size = total
    if not 1 <= vocab_size <= total:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the shards of the logits hold {sizes} = {total} columns. "
            "It must be at least 1 and at most that sum; pass the tokenizer's size, or None for no padding."
        )
    return VocabShard(start, min(max(vocab_size - start, 0), local_size), vocab_size, group)
