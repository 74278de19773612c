"""Megatron's parameters and Hugging Face's tensors: names, shapes, the order of the pieces."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rest_megatron.model.mapping import Piece, expected_tensors, merge, pieces_of, split

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
)
CONFIGS = {
    "qwen3": lambda tied: Qwen3Config(**SIZES, head_dim=6, tie_word_embeddings=tied),
    "qwen2": lambda tied: Qwen2Config(**SIZES, tie_word_embeddings=tied),
    "llama": lambda tied: LlamaConfig(**SIZES, tie_word_embeddings=tied),
}
LAYER = "decoder.layers.0."


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_expected_tensors_are_those_of_hugging_faces_model(family, tied):
    hf = CONFIGS[family](tied)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(hf).state_dict()
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items() if not (tied and name == "lm_head.weight")}
    assert expected_tensors(hf) == theirs


def test_merged_qkv_interleaves_heads_per_key_value_group():
    """Two groups of two query heads, head size 1: Megatron wants q0 q1 k0 v0 q2 q3 k1 v1."""
    q, k, v = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[10.0], [11]]), torch.tensor([[20.0], [21]])
    assert merge([q, k, v], groups=2).flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert merge([q, k, v], groups=1).flatten().tolist() == [0, 1, 2, 3, 10, 11, 20, 21]


def test_merged_gate_and_up_are_stacked_per_rank():
    assert merge([torch.tensor([[1.0], [2]]), torch.tensor([[3.0], [4]])], groups=2).flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize(
    "name",
    [
        "self_attention.linear_qkv.weight",
        "self_attention.linear_qkv.bias",
        "self_attention.linear_proj.weight",
        "mlp.linear_fc1.weight",
        "mlp.linear_fc2.weight",
        "input_layernorm.weight",
    ],
)
def test_split_is_the_inverse_of_merge(name, tp_size):
    hf = CONFIGS["qwen2"](False)
    groups = hf.num_key_value_heads // tp_size
    pieces = pieces_of(LAYER + name, hf, layer_number=2)
    shards = [torch.randn(piece.local_shape(tp_size)) for piece in pieces]
    merged = merge(shards, groups)
    assert merged.shape[0] == sum(shard.shape[0] for shard in shards)
    again = split(merged, pieces, groups, tp_size)
    assert len(again) == len(shards)
    for shard, back in zip(shards, again, strict=True):
        assert torch.equal(shard, back) and back.is_contiguous()


@pytest.mark.parametrize("dim, local", [(0, (2, 6)), (1, (8, 1)), (None, (8, 6))])
def test_a_shard_is_cut_along_one_dimension(dim, local):
    assert Piece("x", (8, 6), dim).local_shape(4 if dim == 0 else 6) == local


def test_a_layer_gets_its_global_number():
    hf = CONFIGS["qwen3"](False)
    names = [piece.name for piece in pieces_of("decoder.layers.1.self_attention.linear_qkv.weight", hf, 11)]
    assert names == [f"model.layers.11.self_attn.{x}_proj.weight" for x in "qkv"]


def test_a_tied_head_is_the_embedding():
    for tied, name in ((True, "model.embed_tokens.weight"), (False, "lm_head.weight")):
        (piece,) = pieces_of("output_layer.weight", CONFIGS["qwen3"](tied), None)
        assert (piece.name, piece.shape, piece.dim) == (name, (96, 32), 0)


@pytest.mark.parametrize("name, number", [("decoder.layers.0.mlp.router.weight", 0), ("decoder.extra.weight", None)])
def test_an_unknown_parameter_is_no_piece(name, number):
    with pytest.raises(KeyError):
        pieces_of(name, CONFIGS["llama"](False), number)
