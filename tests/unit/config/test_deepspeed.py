"""The DeepSpeed configuration: what the training step needs, and what it refuses."""

import copy

import pytest

from rest_megatron.config import load
from rest_megatron.config.deepspeed import engine_config
from rest_megatron.errors import ConfigError

ZERO = {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 5e7, "allgather_bucket_size": 5e7}


def engine(*overrides: str, data_parallel_size: int = 2, micro_batch_size: int = 1) -> dict:
    config = load([], list(overrides))
    return engine_config(config, data_parallel_size=data_parallel_size, micro_batch_size=micro_batch_size)


def test_bfloat16_accumulates_and_reduces_in_float32():
    assert engine(data_parallel_size=4, micro_batch_size=3) == {
        "train_batch_size": 12,
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": ZERO,
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def test_float32_needs_no_precision_settings():
    assert engine("model.dtype=float32", "optim.clip_grad=0.5") == {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": ZERO,
    }


def test_keys_that_are_not_ours_pass_through_unchanged():
    result = engine(
        "deepspeed={steps_per_print: 7, zero_optimization: {reduce_bucket_size: 9}, comms_logger: {a: [1]}}"
    )
    assert result["steps_per_print"] == 7 and result["comms_logger"] == {"a": [1]}
    assert result["zero_optimization"] == {**ZERO, "reduce_bucket_size": 9}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_auto_is_filled_or_left_to_deepspeed(dtype):
    plain = engine(f"model.dtype={dtype}")
    user = (
        "deepspeed={train_batch_size: auto, gradient_clipping: auto, gradient_accumulation_steps: auto, "
        "steps_per_print: auto, communication_data_type: auto, fp16: {enabled: auto}, bf16: {enabled: auto}, "
        "data_types: {grad_accum_dtype: auto}, zero_optimization: {stage: auto, reduce_bucket_size: auto, "
        "overlap_comm: auto, sub_group_size: auto}, optimizer: {type: AdamW, params: {lr: auto, betas: auto}}, "
        "scheduler: {type: auto, params: {total_num_steps: auto}}}"
    )
    result = engine(f"model.dtype={dtype}", user)
    empty = {"bf16": {}, "data_types": {}}
    assert {**empty, **plain} == {**empty, **result}


def test_values_that_agree_are_accepted_and_sections_we_build_ourselves_are_dropped():
    user = (
        "deepspeed={train_batch_size: 2, gradient_clipping: 1, bf16: {enabled: true}, fp16: {enabled: false}, "
        "communication_data_type: fp32, gradient_allreduce_op: mean, "
        "zero_optimization: {stage: 1, overlap_comm: false}, "
        "optimizer: {type: Adam, params: {lr: 1e-6, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.01}}, "
        "scheduler: {type: WarmupLR, params: {warmup_max_lr: 1e-6, warmup_num_steps: 0, warmup_type: linear}}}"
    )
    assert engine(user) == {**engine(), "gradient_allreduce_op": "mean"}


def test_the_optimizer_may_live_on_the_host():
    result = engine("deepspeed.zero_optimization={offload_optimizer: {device: cpu, pin_memory: true}}")
    assert result["zero_force_ds_cpu_optimizer"] is False
    assert result["zero_optimization"] == {**ZERO, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
    assert "zero_force_ds_cpu_optimizer" not in engine(
        "deepspeed.zero_optimization={offload_optimizer: {device: none}}"
    )


@pytest.mark.parametrize(
    "override, fragments",
    [
        ("train_batch_size=64", ["64", "contradicts 2"]),
        ("train_micro_batch_size_per_gpu=4", ["=4", "contradicts 1"]),
        ("gradient_accumulation_steps=8", ["=8", "contradicts 1"]),
        ("gradient_accumulation_steps=true", ["=True", "contradicts 1"]),
        ("gradient_clipping=0.5", ["0.5", "contradicts 1.0", "optim.clip_grad"]),
        ("bf16={enabled: false}", ["bf16.enabled=False", "contradicts True", "model.dtype"]),
        (
            "bf16={enabled: true, immediate_grad_update: false}",
            ["bf16.immediate_grad_update=False", "contradicts True"],
        ),
        ("data_types={grad_accum_dtype: bf16}", ["'bf16'", "contradicts 'fp32'"]),
        ("communication_data_type=bf16", ["'bf16'", "contradicts 'fp32'"]),
        ("zero_allow_untested_optimizer=false", ["False", "contradicts True"]),
        ("optimizer={params: {lr: 1e-5}}", ["optimizer.params.lr=1e-05", "contradicts 1e-06", "optim.lr"]),
        ("optimizer={params: {betas: [0.9, 0.999]}}", ["[0.9, 0.999]", "contradicts [0.9, 0.95]"]),
        ("optimizer={params: {eps: 1e-6}}", ["1e-06", "contradicts 1e-08"]),
        ("optimizer={params: {weight_decay: 0}}", ["=0 ", "contradicts 0.01"]),
        ("optimizer={params: {freeze_step: 3}}", ["freeze_step", "no counterpart"]),
        ("optimizer={type: Lamb}", ["Lamb", "AdamW"]),
        ("scheduler={type: WarmupDecayLR}", ["WarmupDecayLR", "optim.schedule=constant"]),
        ("scheduler={type: WarmupLR, params: {warmup_num_steps: 10}}", ["10", "contradicts 0", "optim.warmup_steps"]),
        ("scheduler={params: {total_num_steps: 10}}", ["total_num_steps", "no counterpart"]),
        ("zero_optimization={stage: 0}", ["stage=0", "reduce", "Set it to 1"]),
        ("zero_optimization={stage: 2}", ["stage=2", "wrong", "Set it to 1"]),
        ("zero_optimization={stage: 3}", ["stage=3", "hangs", "Set it to 1"]),
        ("zero_optimization={stage: 4}", ["stage=4", "no such stage"]),
        ("zero_optimization={stage: true}", ["stage=True", "no such stage"]),
        ("zero_optimization={stage: '1'}", ["stage='1'", "no such stage"]),
        ("zero_optimization={overlap_comm: true}", ["overlap_comm=True", "not be reduced", "Set it to false"]),
        ("zero_optimization={offload_param: {device: cpu}}", ["offload_param", "ZeRO-3"]),
        ("zero_optimization={offload_optimizer: {device: nvme}}", ["'nvme'", "only cpu"]),
        ("zero_optimization=true", ["zero_optimization=True", "must be a mapping"]),
        ("fp16={enabled: true}", ["fp16.enabled=True", "model.dtype"]),
        ("bf16={bf16_master_weights_and_grads: true}", ["bf16_master_weights_and_grads", "float32"]),
        ("gradient_allreduce_op=sum", ["'sum'", "mean over data-parallel ranks"]),
        ("optimizer=AdamW", ["must be a mapping"]),
        ("optimizer={params: 3}", ["optimizer.params=3", "must be a mapping"]),
    ],
)
def test_what_contradicts_the_training_step_is_refused_by_name(override, fragments):
    with pytest.raises(ConfigError) as caught:
        engine(f"deepspeed.{override}")
    message = str(caught.value)
    name = override.partition("=")[0]
    assert message.startswith(f"config error: deepspeed.{name}") and f"override: deepspeed.{override}" in message
    assert all(fragment in message for fragment in fragments), message


def test_offload_with_deepspeeds_own_optimizer_is_refused():
    zero = "deepspeed.zero_optimization={offload_optimizer: {device: cpu}}"
    with pytest.raises(ConfigError, match="zero_force_ds_cpu_optimizer=True contradicts False"):
        engine(zero, "deepspeed.zero_force_ds_cpu_optimizer=true")


def test_float32_refuses_bfloat16_settings():
    with pytest.raises(ConfigError, match="bf16.enabled=True contradicts False"):
        engine("model.dtype=float32", "deepspeed.bf16={enabled: true}")


def test_the_users_section_is_left_as_it_was():
    config = load(
        [], ["deepspeed={zero_optimization: {stage: auto}, optimizer: {type: AdamW}, fp16: {enabled: false}}"]
    )
    before = copy.deepcopy(config.deepspeed)
    engine_config(config, data_parallel_size=2)
    assert config.deepspeed == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_deepspeed_reads_the_same_numbers(dtype):
    from deepspeed.runtime.config import DeepSpeedConfig

    user = "deepspeed.zero_optimization={offload_optimizer: {device: cpu}}"
    settings = engine(f"model.dtype={dtype}", user, data_parallel_size=1, micro_batch_size=2)
    parsed = DeepSpeedConfig(settings)
    assert (parsed.train_batch_size, parsed.train_micro_batch_size_per_gpu) == (2, 2)
    assert (parsed.gradient_accumulation_steps, parsed.gradient_clipping) == (1, 1.0)
    assert parsed.bfloat16_config.enabled == (dtype == "bfloat16")
    assert parsed.grad_accum_dtype == ("fp32" if dtype == "bfloat16" else None)
    assert parsed.zero_config.stage == 1 and parsed.zero_config.overlap_comm is False
    assert parsed.zero_config.reduce_bucket_size == 50_000_000
    assert parsed.zero_force_ds_cpu_optimizer is False
