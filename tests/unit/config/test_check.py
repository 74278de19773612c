"""Rules between the configuration, the model and the number of ranks."""

import json
from dataclasses import fields

import pytest

from rest_megatron.config import load
from rest_megatron.config.check import (
    check_data_files,
    check_layout,
    check_model,
    check_run,
    check_run_dir,
    check_settings,
    read_model_config,
)
from rest_megatron.config.megatron import FIXED_FIELDS, OWNED_FIELDS, check_megatron_fields
from rest_megatron.errors import ConfigError

# Qwen3-14B.
MODEL = {
    "model_type": "qwen3",
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "max_position_embeddings": 40960,
}
TP, PP = "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size"
VPP, SP = "parallel.virtual_pipeline_model_parallel_size", "parallel.sequence_parallel"


def refused(check, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*args)
    return str(caught.value)


def allowed(check, *args) -> bool:
    try:
        check(*args)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("tp", range(1, 17))
def test_tensor_parallel_sizes_are_those_that_divide_the_model(tp):
    sizes = [MODEL[name] for name in ("num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size")]
    config = load([], [f"{TP}={tp}"])
    assert allowed(check_model, config, MODEL) == all(size % tp == 0 for size in sizes)


@pytest.mark.parametrize("name", ["num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"])
def test_each_dimension_that_tensor_parallelism_cuts_is_checked(name):
    config = load([], [f"{TP}=2"])
    message = refused(check_model, config, MODEL | {name: MODEL[name] - 1})
    assert f"does not divide {name}={MODEL[name] - 1}" in message


def test_a_wrong_tensor_parallel_size_lists_the_right_ones():
    message = refused(check_model, load([], [f"{TP}=3"]), MODEL)
    assert message == (
        f"config error: {TP}=3 does not divide num_attention_heads=40   (override: {TP}=3)\n"
        "  qwen3: num_attention_heads 40, num_key_value_heads 8, vocab_size 151936, intermediate_size 17408 -> "
        f"allowed: 1, 2, 4, 8; try {TP}=2"
    )


def test_without_grouped_queries_each_head_counts():
    model = {name: value for name, value in MODEL.items() if name != "num_key_value_heads"}
    assert allowed(check_model, load([], [f"{TP}=8"]), model)


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("vpp", [None, 2, 4, 5])
def test_stages_and_chunks_divide_the_layers(pp, vpp):
    model = MODEL | {"num_hidden_layers": 28}
    config = load([], [f"{PP}={pp}", f"{VPP}={'null' if vpp is None else vpp}"])
    assert allowed(check_model, config, model) == (28 % (pp * (vpp or 1)) == 0)


@pytest.mark.parametrize(
    "pp, vpp, key, hint",
    [
        (3, "null", PP, f"allowed: 1, 2, 4, 7, 14, 28; try {PP}=2"),
        (4, 2, PP, f"allowed: 1, 2, 7, 14; try {PP}=2"),
        (2, 5, VPP, f"allowed: 1, 2, 4, 7, 14, 28; try {VPP}=4"),
    ],
)
def test_a_wrong_pipeline_lists_the_right_ones(pp, vpp, key, hint):
    message = refused(check_model, load([], [f"{PP}={pp}", f"{VPP}={vpp}"]), MODEL | {"num_hidden_layers": 28})
    assert message.startswith(f"config error: {key}=") and "num_hidden_layers=28" in message and hint in message


def test_uneven_stages_are_megatrons_to_judge():
    config = load([], [f"{PP}=3", "megatron.num_layers_in_first_pipeline_stage=8"])
    assert allowed(check_model, config, MODEL | {"num_hidden_layers": 28})


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "mistral", "qwen3_moe", None])
def test_supported_kinds_of_models(kind):
    assert allowed(check_model, load(), MODEL | {"model_type": kind}) == (kind in ("qwen3", "qwen2", "llama"))


@pytest.mark.parametrize("value", [None, 0, -4, "40", 4.0, True])
def test_a_model_without_usable_sizes_is_refused(value):
    message = refused(check_model, load(), MODEL | {"num_attention_heads": value})
    assert f"num_attention_heads={value!r}" in message


def test_a_sequence_fits_the_models_positions():
    config = load([], ["data.max_prompt_tokens=100", "rollout.max_new_tokens=28"])
    assert allowed(check_model, config, MODEL | {"max_position_embeddings": 128})
    message = refused(check_model, config, MODEL | {"max_position_embeddings": 127})
    assert "= 128 exceeds" in message and "max_position_embeddings=127" in message


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8, 12])
def test_world_size_is_a_multiple_of_the_cut(world_size):
    config = load([], [f"{TP}=2", f"{PP}=2"])
    assert allowed(check_layout, config, world_size) == (world_size in (4, 8, 12))


def test_a_wrong_world_size_shows_the_product():
    message = refused(check_layout, load([], [f"{TP}=2", f"{PP}=2"]), 6)
    assert "world size (6) != TP (2) * PP (2) * DP: 6 is not a multiple of 4" in message
    assert "Start 4, 8, ... ranks" in message and "among 1, 2, 3, 6" in message


@pytest.mark.parametrize(
    "overrides, world_size, fragments",
    [
        ([f"{SP}=true"], 1, [f"{SP}=true", f"needs {TP} > 1"]),
        ([f"{VPP}=2"], 1, [f"{VPP}=2", f"needs {PP} > 1"]),
        (
            [f"{SP}=true", f"{TP}=4", "train.max_tokens_per_micro_batch=8190"],
            4,
            ["max_tokens_per_micro_batch=8190", f"{TP}=4", "try train.max_tokens_per_micro_batch=8192"],
        ),
    ],
)
def test_options_that_need_another(overrides, world_size, fragments):
    message = refused(check_layout, load([], overrides), world_size)
    assert all(fragment.lower() in message.lower() for fragment in fragments), message


@pytest.mark.parametrize(
    "overrides",
    [[f"{SP}=true", f"{TP}=4"], [f"{PP}=4", f"{VPP}=2"], [f"{TP}=4", "train.max_tokens_per_micro_batch=8190"]],
)
def test_layouts_that_work(overrides):
    check_layout(load([], overrides), 4)


@pytest.mark.parametrize(
    "overrides, fragments",
    [
        (["train.mini_batch_size=48"], ["=48", "16 x rollout.group_size=8 = 128", "try train.mini_batch_size=32"]),
        (["train.mini_batch_size=256"], ["=256", "= 128", "try train.mini_batch_size=128"]),
        (["train.max_tokens_per_micro_batch=3071"], ["=3071", "2048 + rollout.max_new_tokens=1024 = 3072", "Try"]),
        (["weights.clamp_min=3"], ["weights.clamp_min=3.0", "weights.clamp_max=2.0"]),
        (["weights.w_min=3"], ["weights.w_min=3.0", "weights.w_max=2.0"]),
        (["train.eval_interval=5"], ["train.eval_interval=5", "data.eval"]),
    ],
)
def test_keys_that_contradict_each_other(overrides, fragments):
    message = refused(check_settings, load([], overrides))
    assert all(fragment in message for fragment in fragments), message
    assert f"(override: {overrides[0]})" in message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.mini_batch_size=32"],
        ["train.max_tokens_per_micro_batch=3072"],
        ["weights.clamp_min=2"],
        ["train.eval_interval=5", "data.eval=x"],
    ],
)
def test_keys_that_go_together(overrides):
    check_settings(load([], overrides))


def test_megatron_fields_pass_and_others_do_not():
    check_megatron_fields(load([], ["megatron={recompute_granularity: full, recompute_num_layers: 1}"]))
    message = refused(check_megatron_fields, load([], ["megatron.recompute_granularty=full"]))
    assert "not a field of Megatron's TransformerConfig" in message and "megatron.recompute_granularity?" in message


@pytest.mark.parametrize(
    "name, owner",
    [
        ("tensor_model_parallel_size", "parallel.tensor_model_parallel_size"),
        ("sequence_parallel", "parallel.sequence_parallel"),
        ("bf16", "model.dtype"),
        ("num_layers", "config.json in model.path"),
        ("fp16", "model.dtype=bfloat16"),
        ("perform_initialization", "model.random_init"),
    ],
)
def test_megatron_fields_that_are_not_free_name_their_owner(name, owner):
    assert owner in refused(check_megatron_fields, load([], [f"megatron.{name}=2"]))


def test_every_field_we_refuse_is_one_megatron_has():
    from megatron.core.transformer.transformer_config import TransformerConfig

    assert {*OWNED_FIELDS, *FIXED_FIELDS} <= {field.name for field in fields(TransformerConfig)}


@pytest.fixture
def model_dir(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(MODEL))
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def test_a_run_is_checked_from_one_call(model_dir):
    check_run(load([], [f"model.path={model_dir}", f"{TP}=2"]), 4)
    for override, rule in [
        ("train.mini_batch_size=48", "mini_batch_size"),
        (f"{TP}=3", "world size"),
        ("megatron.num_layers=2", "config.json"),
        ("deepspeed.zero_optimization.stage=3", "hangs"),
        ("rollout.max_new_tokens=40000", "max_tokens_per_micro_batch"),
    ]:
        assert rule in refused(check_run, load([], [f"model.path={model_dir}", override]), 4)


def test_a_model_directory_holds_configuration_and_weights(model_dir, tmp_path):
    config = load([], [f"model.path={model_dir}"])
    (model_dir / "model.safetensors").unlink()
    assert "no *.safetensors" in refused(check_run, config, 1)
    check_run(load([], [f"model.path={model_dir}", "model.random_init=true"]), 1)
    (model_dir / "config.json").unlink()
    assert "no config.json" in refused(check_run, config, 1)
    assert "does not exist" in refused(check_run, load([], [f"model.path={tmp_path / 'no'}"]), 1)
    weights = model_dir / "model.safetensors"
    weights.write_bytes(b"")
    assert "is not a Hugging Face directory" in refused(check_run, load([], [f"model.path={weights}"]), 1)
    assert "is not set" in refused(check_run, load(), 1)


@pytest.mark.parametrize("text, rule", [("{", "cannot be read"), ("[1]", "not a JSON object")])
def test_a_broken_model_configuration_is_refused(model_dir, text, rule):
    (model_dir / "config.json").write_text(text)
    assert rule in refused(read_model_config, load([], [f"model.path={model_dir}"]))


def test_data_files_exist(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    check_data_files(load([], [f"data.train={rows}"]), "train")
    check_data_files(load([], [f"sft.data={rows}"]), "sft")
    assert "data.train is not set" in refused(check_data_files, load(), "train")
    assert "sft.data is not set" in refused(check_data_files, load([], [f"data.train={rows}"]), "sft")
    missing = load([], [f"data.train={rows}", f"data.eval={tmp_path / 'no.jsonl'}"])
    assert "data.eval=" in refused(check_data_files, missing, "train")


@pytest.mark.parametrize(
    ("left", "command", "words", "refused"),
    [
        ((), "train", (), False),
        (("metrics",), "train", (), True),
        (("metrics", "step-00000002.tmp"), "train", (), True),
        (("metrics", "step-00000002"), "train", (), False),
        (("metrics", "step-00000002.old"), "sft", (), False),
        (("metrics", "step-00000002"), "train", ("checkpoint.resume=never",), True),
        (("step-00000000",), "train", ("checkpoint.resume=never",), True),
        (("metrics", "step-00000002"), "profile", (), True),
        (("metrics", "step-00000002"), "train", ("train.debug=rollout_only",), True),
    ],
)
def test_a_directory_with_an_earlier_run_is_resumed_or_refused(tmp_path, left, command, words, refused):
    (tmp_path / "metrics.jsonl").write_text("{}" if "metrics" in left else "")
    for name in left:
        if name.startswith("step"):
            (tmp_path / "checkpoints" / name).mkdir(parents=True)
    config = load([], [f"run.dir={tmp_path}", *words])
    if refused:
        with pytest.raises(ConfigError, match="run.dir=.*holds the (checkpoints|metrics.jsonl) of an earlier run"):
            check_run_dir(config, command)
    else:
        check_run_dir(config, command)
