"""`megatron:` passes fields of Megatron's TransformerConfig through; the ones that are not free are refused here."""

from dataclasses import fields

from rest_megatron.config.keys import nearest
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config

# Fields of TransformerConfig that another key of ours decides.
OWNED_FIELDS = {
    **{
        name: f"parallel.{name}"
        for name in (
            "tensor_model_parallel_size",
            "pipeline_model_parallel_size",
            "virtual_pipeline_model_parallel_size",
            "sequence_parallel",
        )
    },
    **dict.fromkeys(("params_dtype", "pipeline_dtype", "autocast_dtype", "enable_autocast", "bf16"), "model.dtype"),
    **dict.fromkeys(
        (
            "num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "kv_channels",
            "normalization",
            "layernorm_epsilon",
            "gated_linear_unit",
            "activation_func",
            "add_bias_linear",
            "add_qkv_bias",
            "qk_layernorm",
        ),
        "config.json in model.path",
    ),
}
# Fields this trainer needs at the value it sets.
FIXED_FIELDS = {
    "fp16": "fp16 is not supported: use model.dtype=bfloat16",
    "context_parallel_size": "context parallelism is not supported",
    "expert_model_parallel_size": "mixture-of-experts models are not supported",
    "num_moe_experts": "mixture-of-experts models are not supported",
    "perform_initialization": "weights come from model.path or from model.random_init",
    "calculate_per_token_loss": "the loss is normalised over the global batch before Megatron's schedule sees it",
    "overlap_p2p_comm": "it follows the pipeline layout; interleaved stages need it, others must not have it",
    "batch_p2p_comm": "it follows the pipeline layout; interleaved stages must not have it",
    "gradient_accumulation_fusion": "it writes to Megatron's own gradient buffer; DeepSpeed holds the gradients",
    "variable_seq_lengths": "it follows the pipeline layout",
}


def check_megatron_fields(config: Config) -> None:
    """`megatron:` holds only fields of TransformerConfig, and none that is ours. Raises ConfigError.

    Imports Megatron, and only when there is something to compare.
    """
    for name in config.megatron:
        if name in OWNED_FIELDS:
            refuse(config, f"megatron.{name}", f"is decided by {OWNED_FIELDS[name]}", "Remove it here")
        if name in FIXED_FIELDS:
            refuse(config, f"megatron.{name}", f"cannot be set: {FIXED_FIELDS[name]}", "Remove it")
    if not config.megatron:
        return
    from megatron.core.transformer.transformer_config import TransformerConfig

    known = {field.name for field in fields(TransformerConfig)}
    for name in config.megatron:
        if name not in known:
            guess = nearest(name, known)
            fix = f"Did you mean megatron.{guess}?" if guess else "See megatron.core.transformer.TransformerConfig"
            refuse(config, f"megatron.{name}", "is not a field of Megatron's TransformerConfig", fix)
