"""How Megatron's parameters of one rank correspond to Hugging Face's tensors.

One Megatron parameter is made of one or more pieces; a piece is this rank's shard of one Hugging Face tensor along
one dimension. The same correspondence loads weights, exports them, and compares gradients with Hugging Face's.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.model import Policy, head_dim


@dataclass(frozen=True)
class Piece:
    """This rank's shard of a Hugging Face tensor: `shape` is the whole tensor's, `dim` the cut one (None: whole)."""

    name: str
    shape: tuple[int, ...]
    dim: int | None

    def local_shape(self, tp_size: int) -> tuple[int, ...]:
        """Shape of the shard one of `tp_size` ranks holds."""
        return tuple(n // tp_size if i == self.dim else n for i, n in enumerate(self.shape))


_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def pieces_of(name: str, hf: PreTrainedConfig, layer_number: int | None) -> list[Piece]:
    """The pieces of the Megatron parameter `name` (within its chunk), in the order they are merged.

    `layer_number` is the global, zero-based number of the layer it belongs to.
    """
    h, f, v, d = hf.hidden_size, hf.intermediate_size, hf.vocab_size, head_dim(hf)
    q, k = hf.num_attention_heads * d, hf.num_key_value_heads * d
    if layer_number is None:
        head = "model.embed_tokens.weight" if hf.tie_word_embeddings else "lm_head.weight"
        return {
            "embedding.word_embeddings.weight": [Piece("model.embed_tokens.weight", (v, h), 0)],
            "output_layer.weight": [Piece(head, (v, h), 0)],
            "decoder.final_layernorm.weight": [Piece("model.norm.weight", (h,), None)],
        }[name]
    prefix = f"model.layers.{layer_number}."
    attn, mlp = prefix + "self_attn.", prefix + "mlp."
    return {
        "input_layernorm.weight": [Piece(prefix + "input_layernorm.weight", (h,), None)],
        "pre_mlp_layernorm.weight": [Piece(prefix + "post_attention_layernorm.weight", (h,), None)],
        "self_attention.q_layernorm.weight": [Piece(attn + "q_norm.weight", (d,), None)],
        "self_attention.k_layernorm.weight": [Piece(attn + "k_norm.weight", (d,), None)],
        "self_attention.linear_qkv.weight": [
            Piece(attn + f"{x}_proj.weight", (n, h), 0) for x, n in (("q", q), ("k", k), ("v", k))
        ],
        "self_attention.linear_qkv.bias": [
            Piece(attn + f"{x}_proj.bias", (n,), 0) for x, n in (("q", q), ("k", k), ("v", k))
        ],
        "self_attention.linear_proj.weight": [Piece(attn + "o_proj.weight", (h, q), 1)],
        "mlp.linear_fc1.weight": [Piece(mlp + f"{x}_proj.weight", (f, h), 0) for x in ("gate", "up")],
        "mlp.linear_fc2.weight": [Piece(mlp + "down_proj.weight", (h, f), 1)],
    }[name.split(".", maxsplit=3)[-1]]


def merge(pieces: list[Tensor], groups: int) -> Tensor:
    """Local pieces -> the local Megatron tensor. `groups`: key/value groups on this rank.

    Three pieces are q, k, v, which Megatron interleaves per group; two are gate and up, which it stacks.
    """
    if len(pieces) == 3:
        by_group = [x.reshape(groups, -1, *x.shape[1:]) for x in pieces]
        return torch.cat(by_group, dim=1).flatten(0, 1)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def split(tensor: Tensor, pieces: list[Piece], groups: int, tp_size: int) -> list[Tensor]:
    """Inverse of `merge`: the local Megatron tensor -> local pieces, contiguous."""
    rows = [piece.local_shape(tp_size)[0] for piece in pieces]
    if len(pieces) == 3:
        by_group = tensor.reshape(groups, -1, *tensor.shape[1:])
        parts = by_group.split([n // groups for n in rows], dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]
    return [part.contiguous() for part in tensor.split(rows)] if len(pieces) > 1 else [tensor.contiguous()]


@dataclass(frozen=True)
class Mapped:
    """One parameter of this rank with its pieces. `is_copy`: the last stage's copy of a tied embedding."""

    name: str
    parameter: torch.nn.Parameter
    pieces: list[Piece]
    is_copy: bool

    @property
    def dim(self) -> int | None:
        """The dimension tensor parallelism cuts, None for a replicated parameter."""
        return self.pieces[0].dim


def mapped_parameters(policy: Policy) -> Iterator[Mapped]:
    """Every parameter of this rank, each once, in chunk order."""
    for chunk in policy.chunks:
        for name, parameter in chunk.named_parameters():
            layer = _LAYER.fullmatch(name)
            number = chunk.decoder.layers[int(layer.group(1))].layer_number - 1 if layer else None
            is_copy = policy.hf.tie_word_embeddings and name == "output_layer.weight"
            yield Mapped(name, parameter, pieces_of(name, policy.hf, number), is_copy)


def kv_groups(hf: PreTrainedConfig, parallel: Parallel) -> int:
    """Key/value groups on one tensor-parallel rank."""
    return hf.num_key_value_heads // parallel.tp_size


def expected_tensors(hf: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the whole Hugging Face model, without the tied head."""
    layer = [
        "input_layernorm.weight",
        "pre_mlp_layernorm.weight",
        "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
    ]
    if hf.model_type == "qwen3":
        layer += ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"]
    if hf.model_type == "qwen2":
        layer += ["self_attention.linear_qkv.bias"]
    whole = ["embedding.word_embeddings.weight", "output_layer.weight", "decoder.final_layernorm.weight"]
    pieces = [piece for name in whole for piece in pieces_of(name, hf, None)]
    for number in range(hf.num_hidden_layers):
        pieces += [piece for name in layer for piece in pieces_of(f"decoder.layers.{number}.{name}", hf, number)]
    return {piece.name: piece.shape for piece in pieces}


def mismatch(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with the names and shapes of tensors, such as "lacks tensors (1 of 40): lm_head.weight"; or ""."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {found[name]}, config.json wants {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    for what, names in (("lacks", missing), ("has unknown", unknown), ("has misshapen", wrong)):
        if names:
            shown = "; ".join(names[:3]) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")
            return f"{what} tensors ({len(names)} of {len(expected)}): {shown}"
    return ""
