"""A Megatron GPTModel from a Hugging Face configuration: Qwen3, Qwen2.5 and Llama-3, dense.

`Policy` holds this rank's model chunks (several under virtual pipelining) as one module for one DeepSpeed engine.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rest_megatron.config.check import MODEL_TYPES
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import ConfigError
from rest_megatron.model.attention import CoreAttention, transformer_engine_attention
from rest_megatron.model.norm import RMSNorm
from rest_megatron.model.packed import PackedSequences
from rest_megatron.utils.libraries import has_transformer_engine

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ROPE_TYPES = ("default", "linear", "llama3")


def check_supported(hf: PreTrainedConfig) -> None:
    """Refuse architectures whose numbers we could not reproduce exactly.

    Raises ConfigError naming the field, its value and what is supported.
    """
    rules = (
        ("model_type", hf.model_type, MODEL_TYPES),
        ("hidden_act", hf.hidden_act, ("silu",)),
        ("attention_bias", getattr(hf, "attention_bias", False), (False, None)),
        ("mlp_bias", getattr(hf, "mlp_bias", False), (False, None)),
        ("use_sliding_window", getattr(hf, "use_sliding_window", False), (False, None)),
        ("rope_parameters.rope_type", rope_type(hf), ROPE_TYPES),
    )
    for name, value, allowed in rules:
        if value not in allowed:
            supported = ", ".join(repr(x) for x in allowed if x is not None)
            raise ConfigError(f"{name}={value!r} in the model's config.json is not supported; supported: {supported}")


def rope_type(hf: PreTrainedConfig) -> str:
    """The rotary embedding's kind, "default" where the config names none."""
    return (hf.rope_parameters or {}).get("rope_type", "default")


def head_dim(hf: PreTrainedConfig) -> int:
    """Channels of one attention head (Qwen3 sets it apart from hidden_size / heads)."""
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


def inverse_frequencies(hf: PreTrainedConfig) -> Tensor:
    """Rotary inverse frequencies [head_dim / 2], float32, from Hugging Face's own functions."""
    if rope_type(hf) != "default":
        return ROPE_INIT_FUNCTIONS[rope_type(hf)](hf, torch.device("cpu"))[0]
    dim = head_dim(hf)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (hf.rope_parameters["rope_theta"] ** exponents)


def transformer_config(hf: PreTrainedConfig, config: Config, parallel: Parallel) -> TransformerConfig:
    """Megatron's TransformerConfig for this model, layout and the user's `megatron:` fields (which win)."""
    dtype = DTYPES[config.model.dtype]
    on_cuda = parallel.device.type == "cuda"
    interleaved = parallel.num_chunks > 1
    fields: dict[str, Any] = dict(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=head_dim(hf),
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=hf.model_type == "qwen2",
        qk_layernorm=hf.model_type == "qwen3",
        hidden_dropout=0.0,
        attention_dropout=getattr(hf, "attention_dropout", 0.0),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=parallel.tp_size,
        pipeline_model_parallel_size=parallel.pp_size,
        virtual_pipeline_model_parallel_size=parallel.num_chunks if interleaved else None,
        sequence_parallel=config.parallel.sequence_parallel,
        # Two pipeline ranks that interleave exchange in both directions at once: without overlapped point-to-point
        # communication their messages cross and activations go to the wrong chunk, silently.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        # Weights always follow from safetensors or our own seeded generator.
        perform_initialization=False,
        use_cpu_initialization=not on_cuda,
        # The loss arrives already normalised over the global batch; the schedule must not divide it again.
        calculate_per_token_loss=True,
        bias_activation_fusion=on_cuda,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    return TransformerConfig(**{**fields, **config.megatron})


def layer_spec(
    megatron: TransformerConfig, core_attention: type[nn.Module], vp_stage: int | None
) -> TransformerBlockSubmodules:
    """Megatron's local layer spec with our norm and attention, for the layers this chunk builds."""
    spec = get_gpt_layer_local_spec(qk_layernorm=megatron.qk_layernorm, normalization="RMSNorm")
    layer, attention = spec.submodules, spec.submodules.self_attention.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention.core_attention = core_attention
    if megatron.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    count = get_num_layers_to_build(megatron, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[spec] * count, layer_norm=RMSNorm)


def choose_attention(name: str, dtype: torch.dtype, device: torch.device, shared: bool) -> type[nn.Module]:
    """The core attention for `model.attention`; shared: whether packs hold sequences with shared beginnings.

    Transformer Engine computes packs of whole sequences in bfloat16 on CUDA only. Raises ConfigError when it is chosen
    elsewhere, or not installed.
    """
    fits = not shared and device.type == "cuda" and dtype == torch.bfloat16 and has_transformer_engine()
    if name == "sdpa" or (name == "auto" and not fits):
        return CoreAttention
    if not fits:
        raise ConfigError(
            "model.attention=transformer_engine needs Transformer Engine installed, CUDA, model.dtype=bfloat16 and "
            f"train.shared_prefixes=false; here: installed {has_transformer_engine()}, {device.type}, {dtype}, "
            f"shared_prefixes {shared}. Set model.attention=auto"
        )
    return transformer_engine_attention()


def require_no_dropout(attention_dropout: float) -> None:
    """Raises ConfigError where answers that share a prompt would share what dropout draws for it."""
    if attention_dropout > 0:
        raise ConfigError(
            f"attention_dropout is {attention_dropout}: the answers of a group would share what is drawn for their "
            "prompt. Set train.shared_prefixes=false, or megatron.attention_dropout=0"
        )


class Chunk(GPTModel):
    """A GPTModel that ends with its last hidden states; `head` does the rest."""

    def _preprocess(self, input_ids: Tensor, **_: Any) -> tuple[Tensor | None, None, None, None, None, None]:
        """Embeddings on the first stage. No rotary angles: they are the pack's, and our attention applies them."""
        embedded = self.embedding(input_ids=input_ids, position_ids=None) if self.pre_process else None
        return embedded, None, None, None, None, None

    def _postprocess(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Hidden states [s, b, h] (s / TP under sequence parallelism)."""
        return hidden_states

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits of this vocabulary shard, [s, b, vocab / TP], as the GEMM makes them, in the working precision.

        s is whole also under sequence parallelism.
        """
        return self.output_layer(hidden_states, weight=self.output_weight())[0]

    def output_weight(self) -> nn.Parameter:
        """The LM head's weight of this vocabulary shard, [vocab / TP, h]; the embedding's own where they are tied."""
        # Megatron's helper gives the embedding of a chunk that has both, tied or not.
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight

    def decode(self, token_ids: Tensor, hidden: Tensor | None, positions: Tensor, attention_mask: Tensor) -> Tensor:
        """One sampling forward. token_ids, positions [b, s]; attention_mask [b, 1, s, keys], True = visible, or added.

        Returns hidden states [s, b, h] for the next stage, or logits [1, b, vocab / TP] of the last position.
        """
        if self.pre_process:
            hidden = self.embedding(input_ids=token_ids, position_ids=None)
        else:
            self.decoder.set_input_tensor(hidden)
        angles = positions.t().unsqueeze(-1) * self.rotary_pos_emb.inv_freq
        rotary = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        hidden = self.decoder(hidden_states=hidden, attention_mask=attention_mask, rotary_pos_emb=rotary)
        return self.logits(hidden[-1:]) if self.post_process else hidden


class Policy(nn.Module):
    """This rank's chunks. `forward(i, ...)` runs chunk i; DeepSpeed sees one module."""

    def __init__(self, hf: PreTrainedConfig, config: Config, parallel: Parallel) -> None:
        super().__init__()
        self.hf = hf
        self.megatron = transformer_config(hf, config, parallel)
        shared = config.train.shared_prefixes
        if shared:
            require_no_dropout(self.megatron.attention_dropout)
        attention = choose_attention(config.model.attention, self.megatron.params_dtype, parallel.device, shared)
        stages = range(parallel.num_chunks) if parallel.num_chunks > 1 else [None]
        chunks = nn.ModuleList(self._chunk(attention, vp_stage) for vp_stage in stages)
        self.chunks = cast(Sequence[Chunk], chunks)  # as a ModuleList it would have modules of any kind

    def _chunk(self, attention: type[nn.Module], vp_stage: int | None) -> Chunk:
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        chunk = Chunk(
            config=self.megatron,
            transformer_layer_spec=layer_spec(self.megatron, attention, vp_stage),
            vocab_size=self.hf.vocab_size,
            max_sequence_length=self.hf.max_position_embeddings,
            pre_process=first,
            post_process=last,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=self.hf.tie_word_embeddings,
            vp_stage=vp_stage,
        )
        device = next(chunk.parameters()).device
        chunk.rotary_pos_emb.inv_freq = inverse_frequencies(self.hf).to(device)
        return chunk

    def forward(self, index: int, *, packed_seq_params: PackedSequences, **kwargs: Any) -> Tensor:
        """Run chunk `index` on a pack: hidden states for the next stage, or for the head."""
        chunk = self.chunks[index]
        packed = packed_seq_params.prepared(chunk.rotary_pos_emb.inv_freq, self.megatron.params_dtype)
        return chunk(packed_seq_params=packed, **kwargs)
