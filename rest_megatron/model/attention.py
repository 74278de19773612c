"""Core attention for Megatron's layer spec: packs of sequences with shared beginnings, and padded batches with a cache.

Layouts are Megatron's: packed ("thd") tensors are [tokens, heads, dim], batches are [sequence, batch, heads, dim].
Packs are turned by their rotary angles here (Megatron would read their lengths back from the device in every layer);
then one call of PyTorch's variable-length attention takes half precision on CUDA, SDPA a block at a time all else. When
Transformer Engine is chosen it computes packs in which nothing is shared. Sampling always takes SDPA and the cache.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn

from rest_megatron.model.packed import Block, PackedSequences, takes_one_call
from rest_megatron.model.rotary import rotate


class KeyValueCache:
    """Keys and values of one layer, [batch, groups, capacity, dim], filled from the left; empty until `append`."""

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [batch, groups, new, dim]; return all stored so far."""
        if self.length == 0:
            batch, groups, _, dim = keys.shape
            self.keys = keys.new_empty(batch, groups, self.capacity, dim)
            self.values = values.new_empty(batch, groups, self.capacity, dim)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows [kept] of the batch, in this order; a row named twice is repeated."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class CoreAttention(nn.Module):
    """Scaled dot-product attention in the shape Megatron's `SelfAttention` expects of `core_attention`."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__()
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.cache: KeyValueCache | None = None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:
        """Attend.

        Packed: query [t, heads, dim], key and value [t, groups, dim] -> [t, heads * dim], by `PackedSequences`.
        Batched: [s, b, heads, dim] -> [s, b, heads * dim]; attention_mask [b, 1, s, keys] is True where a query
        may look (the opposite of Megatron's convention: only the sampler passes one), or added to the scores; None
        means causal.
        """
        if packed_seq_params is not None:
            return self._packed(*_turned(query, key, packed_seq_params), value, packed_seq_params)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.cache is not None:
            key, value = self.cache.append(key, value)
        out = self._attend(query, key, value, attention_mask)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences) -> Tensor:
        if takes_one_call(query.device, query.dtype):
            return _variable_length(query, key, value, packed, self.softmax_scale).flatten(1)
        sizes = [block.size for block in packed.blocks]
        blocks = zip(packed.blocks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        spans: dict[int, tuple[Tensor, Tensor]] = {}
        out = []
        for block, q, k, v in blocks:
            if block.splits:
                numbers = range(block.first, block.first + len(block.lengths))
                pieces = zip(k.split(block.lengths), v.split(block.lengths), strict=True)
                spans.update(zip(numbers, pieces, strict=True))
            prefix = [spans[number] for number in block.prefix]
            out.append(self._block(q, k, v, block, prefix, packed.masks.get(block.mask_shape)))
        return torch.cat(out).flatten(1)

    def _block(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        block: Block,
        prefix: list[tuple[Tensor, Tensor]],
        mask: Tensor | None,
    ) -> Tensor:
        """[tokens of the block, heads, dim]; prefix: keys and values [tokens, groups, dim] of what it continues."""
        wide = [x if block.rows is None else x.index_select(0, block.rows) for x in (query, key, value)]
        q, k, v = (x.unflatten(0, (len(block.lengths), -1)).transpose(1, 2) for x in wide)
        if prefix:
            before = (torch.cat(pieces).transpose(0, 1) for pieces in zip(*prefix, strict=True))
            k, v = (
                torch.cat([x.expand(len(own), -1, -1, -1), own], dim=2) for x, own in zip(before, (k, v), strict=True)
            )
        out = self._attend(q, k, v, mask if prefix else None).transpose(1, 2)
        if block.rows is None:
            return out.flatten(0, 1)
        return torch.cat([own[:length] for own, length in zip(out.unbind(0), block.lengths, strict=True)])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[b, heads, q, dim] x [b, groups, k, dim] -> [b, heads, q, dim]."""
        if mask is not None and query.shape[2] == 1:
            # One new token: the heads of a group attend as if they were positions, so each key is read only once.
            folded = query.reshape(*key.shape[:2], -1, query.shape[3])
            return F.scaled_dot_product_attention(
                folded, key, value, attn_mask=mask.expand(-1, -1, folded.shape[2], -1), scale=self.softmax_scale
            ).reshape(query.shape)
        if mask is not None and query.is_cuda and query.shape[1] != key.shape[1]:
            # CUDA's memory-efficient kernel takes a mask or grouped heads, not both; the fallback stores all scores.
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def _turned(query: Tensor, key: Tensor, packed: PackedSequences) -> tuple[Tensor, Tensor]:
    """Both by the rotary angles of their positions."""
    assert packed.cos is not None and packed.sin is not None
    return rotate(query, packed.cos, packed.sin), rotate(key, packed.cos, packed.sin)


def _variable_length(query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences, scale: float | None) -> Tensor:
    """All spans in one call: keys and values of what a span continues are gathered before its own."""
    if packed.key_index is not None:
        key, value = key[packed.key_index], value[packed.key_index]
    out = varlen_attn(
        query,
        key,
        value,
        packed.cu_seqlens_q,
        packed.cu_seqlens_kv,
        packed.max_seqlen_q,
        packed.max_seqlen_kv,
        scale=scale,
        # Causal; the last query is aligned with the last key.
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out)  # a tensor where nothing else is asked for


def transformer_engine_attention() -> type[nn.Module]:
    """CoreAttention whose packed path is Transformer Engine's fused attention, which must be installed."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class TransformerEngineAttention(CoreAttention):
        """Packed sequences through Transformer Engine, everything else through SDPA."""

        def __init__(
            self,
            config: TransformerConfig,
            layer_number: int,
            attn_mask_type: AttnMaskType,
            attention_type: str,
            **kwargs: Any,
        ) -> None:
            super().__init__(config, layer_number, attn_mask_type, attention_type, **kwargs)
            self.packed_attention = TEDotProductAttention(
                config, layer_number, attn_mask_type, attention_type, **kwargs
            )

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None = None,
            *,
            attn_mask_type: AttnMaskType | None = None,
            attention_bias: Tensor | None = None,
            packed_seq_params: PackedSequences | None = None,
        ) -> Tensor:
            if packed_seq_params is None:
                return super().forward(query, key, value, attention_mask)
            query, key = _turned(query, key, packed_seq_params)
            out = self.packed_attention(
                query, key, value, None, AttnMaskType.padding_causal, packed_seq_params=packed_seq_params
            )
            return out.reshape(out.shape[0], -1)

    return TransformerEngineAttention
