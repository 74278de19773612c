"""Core attention for Megatron's layer spec: PyTorch SDPA for packs and padded batches, with a key/value cache.

Layouts are Megatron's: packed ("thd") tensors are [tokens, heads, dim], batches are [sequence, batch, heads, dim].
When Transformer Engine is chosen it computes the packed training path; sampling always takes SDPA and the cache.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor, nn


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's packing record plus the lengths on the host, so that attention needs no device sync."""

    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "PackedSequences":
        """Packing of consecutive sequences with these lengths (tokens)."""
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        longest = max(lengths)
        return cls(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            lengths=tuple(lengths),
        )


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
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Packed: query [t, heads, dim], key and value [t, groups, dim] -> [t, heads * dim], causal per sequence.
        Batched: [s, b, heads, dim] -> [s, b, heads * dim]; attention_mask [b, 1, s, keys] is True where a query
        may look (the opposite of Megatron's convention: only the sampler passes one), or added to the scores; None
        means causal.
        """
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params.lengths)
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if self.cache is not None:
            key, value = self.cache.append(key, value)
        out = self._attend(query, key, value, attention_mask)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
        # Each tensor as sequences [1, heads, tokens, dim].
        pieces = ([x.transpose(0, 1).unsqueeze(0) for x in whole.split(lengths)] for whole in (query, key, value))
        out = [self._attend(q, k, v, None) for q, k, v in zip(*pieces, strict=True)]
        return torch.cat([x.squeeze(0).transpose(0, 1) for x in out]).flatten(1)

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
            packed_seq_params: PackedSeqParams | None = None,
        ) -> Tensor:
            if packed_seq_params is None:
                return super().forward(query, key, value, attention_mask)
            out = self.packed_attention(
                query, key, value, None, AttnMaskType.padding_causal, packed_seq_params=packed_seq_params
            )
            return out.reshape(out.shape[0], -1)

    return TransformerEngineAttention
