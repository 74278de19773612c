"""Which models are accepted, and their rotary frequencies."""

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rest_megatron.errors import ConfigError
from rest_megatron.model.attention import CoreAttention
from rest_megatron.model.model import (
    check_supported,
    choose_attention,
    head_dim,
    inverse_frequencies,
    require_no_dropout,
    rope_type,
)
from tests.tiny import LLAMA3_ROPE, SIZES

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "llama3": LLAMA3_ROPE,
}
REFUSED = [
    (LlamaConfig(**SIZES, attention_bias=True), "attention_bias=True"),
    (LlamaConfig(**SIZES, mlp_bias=True), "mlp_bias=True"),
    (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act='gelu'"),
    (Qwen3Config(**SIZES, attention_bias=True), "attention_bias=True"),
    (Qwen2Config(**SIZES, use_sliding_window=True), "use_sliding_window=True"),
    (
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "rope_type='yarn'",
    ),
    (
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "rope_type='dynamic'",
    ),
]


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SIZES),
        Qwen2Config(**SIZES),
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE),
    ],
)
def test_dense_qwen_and_llama_are_supported(config):
    check_supported(config)


@pytest.mark.parametrize("config, text", REFUSED, ids=[text for _, text in REFUSED])
def test_what_could_not_be_reproduced_exactly_is_refused(config, text):
    with pytest.raises(ConfigError) as error:
        check_supported(config)
    assert text in str(error.value) and "supported: " in str(error.value)


def test_another_architecture_is_refused_by_name():
    config = LlamaConfig(**SIZES)
    config.model_type = "mixtral"
    with pytest.raises(ConfigError, match="model_type='mixtral'.*'qwen3', 'qwen2', 'llama'"):
        check_supported(config)


@pytest.mark.parametrize("kind", ROPES)
def test_inverse_frequencies_are_hugging_faces(kind):
    config = LlamaConfig(**SIZES, rope_parameters=ROPES[kind])
    theirs = LlamaRotaryEmbedding(config)
    assert rope_type(config) == kind
    assert torch.equal(inverse_frequencies(config), theirs.inv_freq)
    assert inverse_frequencies(config).dtype == torch.float32
    assert theirs.attention_scaling == 1.0, "Megatron would not apply it"


@pytest.mark.parametrize(
    "config, dim", [(Qwen3Config(**SIZES, head_dim=32), 32), (Qwen2Config(**SIZES), 16), (LlamaConfig(**SIZES), 16)]
)
def test_head_dim_is_the_configs_own_or_hidden_size_over_heads(config, dim):
    assert head_dim(config) == dim


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_packs_that_share_are_computed_by_our_own_attention(name):
    assert choose_attention(name, torch.bfloat16, torch.device("cuda"), shared=True) is CoreAttention


def test_transformer_engine_is_refused_where_packs_share():
    with pytest.raises(ConfigError, match="train.shared_prefixes=false"):
        choose_attention("transformer_engine", torch.bfloat16, torch.device("cuda"), shared=True)


def test_dropout_is_refused_where_packs_share():
    require_no_dropout(0.0)
    with pytest.raises(ConfigError, match="attention_dropout is 0.1.*train.shared_prefixes=false"):
        require_no_dropout(0.1)
