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
        """Statistics [T, k] of every shard, in rank order: [shards, T, k]. One collective; none without a group."""
        if self.group is None:
            return stats.unsqueeze(0)
        num_shards = self.group.size()
        gathered = stats.new_empty(num_shards * stats.shape[0], stats.shape[1])
        dist.all_gather_into_tensor(gathered, stats.contiguous(), group=self.group)
        return gathered.view(num_shards, *stats.shape)


def vocab_shard(
    local_size: int,
    num_tokens: int,
    *,
    vocab_size: int | None,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> VocabShard:
    """Place `local_size` columns in the vocabulary. Columns at or beyond `vocab_size` are padding; None: there is none.

    Shards may differ in size, so without `vocab_start` the ranks exchange their sizes, two integers each, and check
    them: this waits for the device. With it they trust the caller, and `vocab_size` must be given too.
    Raises ValueError when the shards do not cover `vocab_size` or the ranks have different numbers of tokens.
    """
    if vocab_start is not None and group is not None:
        return _trusted(local_size, vocab_size, vocab_start, group)
    sizes, rank = [local_size], 0
    if group is not None:
        local = torch.tensor([local_size, num_tokens], dtype=torch.int64, device=device)
        gathered = torch.empty(group.size() * 2, dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(gathered, local, group=group)
        sizes, counts, rank = gathered[::2].tolist(), gathered[1::2].tolist(), group.rank()
        if len(set(counts)) > 1:
            raise ValueError(
                f"the ranks of tp_group have {counts} tokens; all of them must pass the same tokens, each with its own "
                "columns of the vocabulary."
            )
    start, total = sum(sizes[:rank]), sum(sizes)
    if vocab_start not in (None, start):
        raise ValueError(f"vocab_start is {vocab_start}; without a tp_group the logits start at 0.")
    if vocab_size is None:
        vocab_size = total
    if not 1 <= vocab_size <= total:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the shards of the logits hold {sizes} = {total} columns. "
            "It must be at least 1 and at most that sum; pass the tokenizer's size, or None for no padding."
        )
    return VocabShard(start, min(max(vocab_size - start, 0), local_size), vocab_size, group)


def _trusted(local_size: int, vocab_size: int | None, vocab_start: int, group: dist.ProcessGroup) -> VocabShard:
    if vocab_start < 0:
        raise ValueError(f"vocab_start is {vocab_start}; it must be the id of this rank's first column, 0 or more.")
    if vocab_size is None:
        raise ValueError(
            f"vocab_start is {vocab_start} but vocab_size is None: without an exchange between the ranks the size of "
            "the vocabulary must be given. Pass vocab_size, or leave vocab_start out."
        )
    if vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 1.")
    return VocabShard(vocab_start, min(max(vocab_size - vocab_start, 0), local_size), vocab_size, group)
