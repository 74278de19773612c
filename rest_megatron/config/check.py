"""Rules between keys, and between the configuration, the model and the number of ranks.

Everything here runs before a process group or a model exists, so a wrong layout costs a second.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rest_megatron.config.check_method import check_method
from rest_megatron.config.check_rollout import check_rollout, check_server_files
from rest_megatron.config.deepspeed import engine_config
from rest_megatron.config.megatron import check_megatron_fields
from rest_megatron.config.refuse import refuse, value_of
from rest_megatron.config.schema import Config
from rest_megatron.errors import ConfigError

MODEL_TYPES = ("qwen3", "qwen2", "llama")
CUT_BY_TENSOR_PARALLEL = ("num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size")

UNEVEN_STAGES = {
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
}


def check_run(config: Config, world_size: int) -> None:
    """Every rule: keys, layout, `megatron:`, `deepspeed:`, model. Reads nothing but model.path/config.json.

    Raises ConfigError for the first rule that fails.
    """
    check_settings(config)
    check_layout(config, world_size)
    check_megatron_fields(config)
    parallel = config.parallel
    cut = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    engine_config(config, data_parallel_size=world_size // cut)
    check_server_files(config)
    check_model_files(config)
    check_model(config, read_model_config(config))


def check_settings(config: Config) -> None:
    """Rules between keys. Raises ConfigError."""
    check_method(config)
    check_rollout(config)
    _check_debug(config)
    _check_step(config)


def _check_debug(config: Config) -> None:
    train = config.train
    if train.debug == "rollout_only" and not config.rollout.dump:
        rule = "makes dumps and nothing else, but rollout.dump=false"
        refuse(config, "train.debug", rule, "Set rollout.dump=true")
    if train.debug == "train_only" and not train.replay:
        rule = "trains on the answers of another run, but train.replay names none"
        refuse(config, "train.debug", rule, "Set train.replay to that run's directory rollouts")
    if train.debug != "train_only" and train.replay is not None:
        rule = f"is read with train.debug=train_only alone, which is {train.debug}"
        refuse(config, "train.replay", rule, "Set train.debug=train_only, or remove it")


def _check_step(config: Config) -> None:
    """The answers of a step: how they are sampled, cut into mini-batches and packed."""
    rollout, train, data = config.rollout, config.train, config.data
    if train.eval_interval and data.eval is None:
        refuse(config, "train.eval_interval", "needs held-out prompts, but data.eval is null", "Set data.eval")
    answers = rollout.prompts_per_step * rollout.group_size
    size = train.mini_batch_size
    if size is not None and answers % size:
        refuse(
            config,
            "train.mini_batch_size",
            f"does not divide the answers of a step, rollout.prompts_per_step={rollout.prompts_per_step} x "
            f"rollout.group_size={rollout.group_size} = {answers}",
            _allowed("train.mini_batch_size", _divisors(answers), size),
        )
    if rollout.engine == "sampler" and rollout.group_size > rollout.max_batch_size:
        rule = f"is less than rollout.group_size={rollout.group_size}: the answers to a prompt are decoded together"
        refuse(config, "rollout.max_batch_size", rule, f"Try rollout.max_batch_size={rollout.group_size}")
    longest = data.max_prompt_tokens + rollout.max_new_tokens
    if train.max_tokens_per_micro_batch < longest:
        refuse(
            config,
            "train.max_tokens_per_micro_batch",
            f"is less than one longest answer, data.max_prompt_tokens={data.max_prompt_tokens} + "
            f"rollout.max_new_tokens={rollout.max_new_tokens} = {longest}",
            f"Try train.max_tokens_per_micro_batch={longest}",
        )


def check_layout(config: Config, world_size: int) -> None:
    """World size = TP x PP x DP and what TP, PP, VPP and SP need of each other. Raises ConfigError."""
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    if world_size % (tp * pp):
        raise ConfigError(
            f"world size ({world_size}) != TP ({tp}) * PP ({pp}) * DP: {world_size} is not a multiple of {tp * pp}   "
            f"(TP: {config.where('parallel.tensor_model_parallel_size')}, "
            f"PP: {config.where('parallel.pipeline_model_parallel_size')})\n"
            f"  Start {tp * pp}, {2 * tp * pp}, ... ranks, or choose TP * PP among {_list(_divisors(world_size))}"
        )
    if parallel.virtual_pipeline_model_parallel_size is not None and pp == 1:
        refuse(
            config,
            "parallel.virtual_pipeline_model_parallel_size",
            "needs parallel.pipeline_model_parallel_size > 1, which is 1",
            "Set it to null, or raise parallel.pipeline_model_parallel_size",
        )
    if not parallel.sequence_parallel:
        return
    if tp == 1:
        refuse(
            config,
            "parallel.sequence_parallel",
            "needs parallel.tensor_model_parallel_size > 1, which is 1",
            "Set it to false, or raise parallel.tensor_model_parallel_size",
        )
    tokens = config.train.max_tokens_per_micro_batch
    if tokens % tp:
        refuse(
            config,
            "train.max_tokens_per_micro_batch",
            f"is not a multiple of parallel.tensor_model_parallel_size={tp}, as parallel.sequence_parallel=true needs",
            f"Try train.max_tokens_per_micro_batch={math.ceil(tokens / tp) * tp}",
        )


def check_model(config: Config, model: Mapping[str, Any]) -> None:
    """What the model allows: its kind, how far it can be cut, how long a sequence may be. Raises ConfigError."""
    kind = model.get("model_type")
    if kind not in MODEL_TYPES:
        refuse(config, "model.path", f"holds model_type={kind!r}", f"Supported: {', '.join(MODEL_TYPES)}")
    sizes = {name: _size(config, model, name) for name in (*CUT_BY_TENSOR_PARALLEL, "num_hidden_layers")}
    limit = _size(config, model, "max_position_embeddings")
    _check_cut(config, kind, sizes)
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > limit:
        refuse(
            config,
            "rollout.max_new_tokens",
            f"+ data.max_prompt_tokens={config.data.max_prompt_tokens} = {longest} exceeds the model's "
            f"max_position_embeddings={limit}",
            f"Keep their sum within {limit}",
        )


def _check_cut(config: Config, kind: str, sizes: Mapping[str, int]) -> None:
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    vpp = parallel.virtual_pipeline_model_parallel_size or 1
    facts = f"{kind}: " + ", ".join(f"{name} {sizes[name]}" for name in CUT_BY_TENSOR_PARALLEL)
    for name in CUT_BY_TENSOR_PARALLEL:
        if sizes[name] % tp:
            allowed = _divisors(math.gcd(*(sizes[n] for n in CUT_BY_TENSOR_PARALLEL)))
            refuse(
                config,
                "parallel.tensor_model_parallel_size",
                f"does not divide {name}={sizes[name]}",
                f"{facts} -> {_allowed('parallel.tensor_model_parallel_size', allowed, tp)}",
            )
    layers = sizes["num_hidden_layers"]
    if layers % (pp * vpp) == 0 or UNEVEN_STAGES & config.megatron.keys():
        return
    rule = f"PP ({pp}) * VPP ({vpp}) does not divide num_hidden_layers={layers}"
    if layers % vpp:
        key, allowed, wanted = "parallel.virtual_pipeline_model_parallel_size", _divisors(layers), vpp
    else:
        key, allowed, wanted = "parallel.pipeline_model_parallel_size", _divisors(layers // vpp), pp
    refuse(config, key, f"cannot cut the model: {rule}", f"{kind}: {_allowed(key, allowed, wanted)}")


def check_model_files(config: Config) -> None:
    """model.path holds a Hugging Face model. Raises ConfigError when it does not."""
    _require(config, "model.path", "a Hugging Face directory", Path.is_dir)
    directory = Path(config.model.path)
    if not (directory / "config.json").is_file():
        refuse(config, "model.path", "holds no config.json", "Point it at a Hugging Face model directory")
    if not config.model.random_init and not any(directory.glob("*.safetensors")):
        refuse(config, "model.path", "holds no *.safetensors", "Add the weights, or set model.random_init=true")


def check_data_files(config: Config, command: str) -> None:
    """The data files that `command` ("train" or "sft") reads exist. Raises ConfigError for one that does not."""
    wanted = ("sft.data",) if command == "sft" else ("data.train", *(["data.eval"] if config.data.eval else []))
    for key in wanted:
        _require(config, key, "a .parquet, .jsonl or .json file", Path.is_file)


def check_run_dir(config: Config, command: str) -> None:
    """run.dir holds no earlier run, whose files would be mixed with this one's, or one that `command` may resume.

    Raises ConfigError.
    """
    directory = Path(config.run.dir)
    metrics = directory / "metrics.jsonl"
    saved = any(not path.name.endswith(".tmp") for path in directory.glob("checkpoints/step-*"))
    if not saved and not (metrics.exists() and metrics.stat().st_size > 0):
        return
    resumable = command == "sft" or (command == "train" and config.train.debug == "off")
    if saved and resumable and config.checkpoint.resume != "never":
        return
    what = "the checkpoints" if saved else "the metrics.jsonl"
    refuse(config, "run.dir", f"holds {what} of an earlier run", "Choose another run.dir, or delete it")


def read_model_config(config: Config) -> dict[str, Any]:
    """config.json of model.path. Raises ConfigError when it is not a JSON object."""
    path = Path(config.model.path) / "config.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}   ({config.where('model.path')})") from error
    if not isinstance(model, dict):
        refuse(config, "model.path", "holds a config.json that is not a JSON object", "Download the model again")
    return model


def _require(config: Config, key: str, what: str, exists: Callable[[Path], bool]) -> None:
    value = value_of(config, key)
    if not value:
        refuse(config, key, "is not set", f"Set it to {what}")
    if not exists(Path(value)):
        fault = f"is not {what}" if Path(value).exists() else "does not exist"
        refuse(config, key, f"{fault} (looked in {Path.cwd()})", f"Set it to {what}")


def _size(config: Config, model: Mapping[str, Any], name: str) -> int:
    # Hugging Face: without grouped-query attention each head has its own keys and values.
    grouped = name != "num_key_value_heads" or model.get(name) is not None
    value = model.get(name if grouped else "num_attention_heads")
    if type(value) is not int or value < 1:
        refuse(config, "model.path", f"holds a config.json with {name}={value!r}", "It must be a whole number > 0")
    return value


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _allowed(key: str, values: list[int], wanted: int) -> str:
    best = max((value for value in values if value <= wanted), default=values[0])
    return f"allowed: {_list(values)}; try {key}={best}"


def _list(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:16]))
    return shown if len(values) <= 16 else f"{shown}, ..."
