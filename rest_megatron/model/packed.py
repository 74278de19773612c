"""A pack of sequences that share their beginnings: which runs of tokens lie in it, and what each of them attends to.

A pack holds spans, each a run of consecutive tokens. A span begins a sequence or continues another span, so that the
spans of several answers hang on the span of their one prompt. A token sees what is before it in its own span and all of
the spans that this one continues: what a sequence of its own would have seen, at the same positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

BEGINS = -1
"""The parent of a span that begins a sequence."""
PADDED_PAIRS = 2048
"""Query-key pairs of padding that cost less than one more call of the attention does."""


class Span(NamedTuple):
    """Some tokens of a pack, in the order in which a sequence has them."""

    length: int
    start: int
    """Position of its first token in its sequence: the tokens of all spans that it continues."""
    parent: int = BEGINS
    """Number of the span that it continues, which lies before it in the pack; or BEGINS."""


class Block(NamedTuple):
    """Neighbouring spans that continue the same one, and attend in one call, padded to the longest of them."""

    first: int
    lengths: tuple[int, ...]
    prefix: tuple[int, ...]
    """Numbers of the spans that all of them continue, from the one that begins the sequence."""
    prefix_length: int
    splits: bool
    """Whether other spans continue some of these."""
    rows: Tensor | None
    """[spans * longest] int64: of each span its own tokens and, up to the longest's length, those that follow it in the
    block, which nothing of the span sees; None: all are equally long."""

    @property
    def size(self) -> int:
        """Tokens, without padding."""
        return sum(self.lengths)

    @property
    def mask_shape(self) -> tuple[int, int]:
        """(queries, keys before them) of the longest span."""
        return max(self.lengths), self.prefix_length


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's packing record, and what our own attention reads: no length has to be read back from the device."""

    spans: tuple[Span, ...] = ()
    prefixes: tuple[tuple[int, ...], ...] = ()
    """Of each span: the numbers of all that it continues, from the one that begins the sequence."""
    blocks: tuple[Block, ...] = ()
    """What attends together, where not all spans do; none before `prepared`."""
    positions: Tensor | None = None
    """[t] int64: of each token in its sequence."""
    key_index: Tensor | None = None
    """[keys] int64: the tokens that each span sees, span after span, `cu_seqlens_kv` the bounds; None: the pack's own
    in their order, for nothing is shared."""
    cos: Tensor | None = None
    """[t, 1, dim / 2], of each token's rotary angles; None before `prepared`."""
    sin: Tensor | None = None
    masks: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    """Of each `Block.mask_shape` with keys before: [1, 1, queries, keys] to be added to the scores, 0 or -inf."""

    @classmethod
    def of(cls, spans: Sequence[Span], device: torch.device) -> "PackedSequences":
        """The pack of these spans, in this order."""
        prefixes: list[tuple[int, ...]] = []
        for span in spans:
            prefixes.append(() if span.parent == BEGINS else (*prefixes[span.parent], span.parent))
        keys = [span.start + span.length for span in spans]
        shared = any(prefixes)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=_bounds([span.length for span in spans]).to(device),
            cu_seqlens_kv=_bounds(keys).to(device),
            max_seqlen_q=max(span.length for span in spans),
            max_seqlen_kv=max(keys),
            spans=tuple(spans),
            prefixes=tuple(prefixes),
            positions=torch.cat([torch.arange(s.start, s.start + s.length) for s in spans]).to(device),
            key_index=_key_index(spans, prefixes).to(device) if shared else None,
        )

    def prepared(self, inverse_frequencies: Tensor, dtype: torch.dtype) -> "PackedSequences":
        """The same with what all layers of a forward pass need; inverse_frequencies [dim / 2] float32."""
        assert self.positions is not None
        angles = (self.positions[:, None] * inverse_frequencies)[:, None]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        if takes_one_call(angles.device, dtype):
            return replace(self, cos=cos, sin=sin)
        blocks = _blocks(self.spans, self.prefixes, angles.device)
        masks = {shape: _visible(*shape, cos) for shape in {block.mask_shape for block in blocks if block.prefix}}
        return replace(self, cos=cos, sin=sin, blocks=blocks, masks=masks)


def takes_one_call(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether all spans attend in one call of variable-length attention, without masks."""
    return device.type == "cuda" and dtype != torch.float32


def _visible(queries: int, before: int, like: Tensor) -> Tensor:
    """Causal, the last query aligned with the last key."""
    hidden = torch.full((queries, before + queries), -torch.inf, dtype=like.dtype, device=like.device)
    return hidden.triu_(before + 1)[None, None]


def _bounds(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def _key_index(spans: Sequence[Span], prefixes: Sequence[tuple[int, ...]]) -> Tensor:
    first = [0, *accumulate(span.length for span in spans)]
    rows = [torch.arange(a, b) for a, b in pairwise(first)]
    return torch.cat([rows[number] for own, prefix in enumerate(prefixes) for number in (*prefix, own)])


def _blocks(spans: Sequence[Span], prefixes: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Block, ...]:
    """Runs of neighbours with one parent; another block begins where padding would cost more than a call."""
    runs: list[list[int]] = []
    total = longest = 0
    for number, span in enumerate(spans):
        run = runs[-1] if runs else []
        longest_with = max(longest, span.length)
        padding = (len(run) + 1) * longest_with - total - span.length
        cheap = padding * (span.start + longest_with) <= PADDED_PAIRS * len(run)
        if run and cheap and spans[run[0]].parent == span.parent:
            run.append(number)
            total, longest = total + span.length, longest_with
        else:
            runs.append([number])
            total = longest = span.length
    parents = {span.parent for span in spans}
    found = []
    for run in runs:
        own = tuple(spans[number].length for number in run)
        splits = not parents.isdisjoint(run)
        rows = _padded_rows(own, device)
        found.append(Block(run[0], own, prefixes[run[0]], spans[run[0]].start, splits, rows))
    return tuple(found)


def _padded_rows(lengths: tuple[int, ...], device: torch.device) -> Tensor | None:
    """`Block.rows`."""
    if min(lengths) == max(lengths):
        return None
    first = _bounds(lengths)[:-1].long()
    rows = first.unsqueeze(1) + torch.arange(max(lengths))
    return rows.clamp_(max=sum(lengths) - 1).flatten().to(device)
