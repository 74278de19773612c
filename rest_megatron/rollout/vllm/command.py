"""The command line and the environment of a vLLM server, from the configuration. Nothing here starts anything."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_megatron.config.schema import Config

MODULE = "vllm.entrypoints.openai.api_server"
MODEL_NAME = "policy"
"""What requests call the model."""
API_KEY = "VLLM_API_KEY"
"""Environment variable with the bearer token that vLLM asks for; its own name."""
BACKEND = "rest_files"
WORKER_DIRECTORY = Path(__file__).parent / "worker"
WORKER_EXTENSION = "rest_vllm_worker.Extension"
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
MAX_CPU_SEQUENCES = 128
MAX_CPU_CACHE_BYTES = 4 << 30
CPU_BLOCK_TOKENS = 128
MIN_CPU_BATCH_TOKENS = 4096

# Variables that describe this process: its launcher's, and its interpreter's.
FOREIGN_PREFIXES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "TORCHELASTIC_", "GROUP_", "ROLE_")
FOREIGN_NAMES = frozenset(
    (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "CROSS_RANK", "CROSS_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"),
    )
)


def server_command(python: str, arguments: Mapping[str, Any]) -> list[str]:
    """The words that start a server: `python`, and `arguments` under vLLM's own names.

    In `vllm serve` of some builds the command line itself fails; the module is the same server.
    """
    return [python, "-m", MODULE, *(word for name, value in arguments.items() for word in _words(name, value))]


def server_arguments(config: Config, model: Mapping[str, Any], on_cpu: bool) -> dict[str, Any]:
    """vLLM's arguments under their own names, without where to listen; those of the `vllm:` section win.

    Args:
        config: with rollout.engine=vllm.
        model: config.json of model.path.
        on_cpu: the server computes without an accelerator.
    """
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    ours: dict[str, Any] = {
        "model": os.path.abspath(config.model.path),
        "served_model_name": MODEL_NAME,
        "runner": "generate",
        "dtype": config.model.dtype,
        "max_model_len": longest,
        "seed": config.run.seed,
        # Log-probs at the sampling temperature, as the actor computes them.
        "logprobs_mode": "processed_logprobs",
        # Otherwise the model's generation_config.json would change how tokens are drawn.
        "generation_config": "vllm",
        # The trainer sends all weights before the first answer.
        "load_format": "dummy",
        "worker_extension_cls": WORKER_EXTENSION,
        "weight_transfer_config": {"backend": BACKEND},
        "uvicorn_log_level": "warning",
    }
    if not model.get("architectures"):
        # From a bare configuration vLLM would make a model that embeds text.
        ours["hf_overrides"] = {"architectures": [ARCHITECTURES[model["model_type"]]]}
    if on_cpu:
        ours |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": _cpu_cache_bytes(config, model),
            # A prompt with a seed that is read in two parts kills vLLM 0.32 on a CPU.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(longest, MIN_CPU_BATCH_TOKENS),
        }
    return {**ours, **config.vllm}


def server_variables(config: Config, on_cpu: bool) -> dict[str, str]:
    """Environment variables that a server needs on top of its user's."""
    variables = {
        "PYTHONPATH": str(WORKER_DIRECTORY),
        # Modules of the working directory must not take the place of installed ones.
        "PYTHONSAFEPATH": "1",
        # The calls that pause, update and inspect the server.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if config.rollout.vllm_devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = config.rollout.vllm_devices
    return variables | (CPU_VARIABLES if on_cpu else {})


# One thread per worker, wherever the system puts it: vLLM's own choice leaves cores idle, and more threads than free
# cores are many times slower than one. Without compilation, whose first request would take half a minute. And glibc
# keeps large blocks that are freed: every weight update allocates a model's worth of them, and the time would go into
# fresh pages.
CPU_VARIABLES = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCH_COMPILE_DISABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}


def server_environment(config: Config, environ: Mapping[str, str], on_cpu: bool) -> dict[str, str]:
    """The whole environment of a server that a process with `environ` starts.

    Without the variables that say which rank this process is and which interpreter runs it; CPU_VARIABLES only where
    the user has not set them.
    """
    kept = {k: v for k, v in environ.items() if k not in FOREIGN_NAMES and not k.startswith(FOREIGN_PREFIXES)}
    variables = server_variables(config, on_cpu)
    if config.rollout.vllm_python is not None:
        # Tools that vLLM calls, such as ninja, lie beside its interpreter, as in an activated environment.
        tools = os.path.dirname(os.path.abspath(config.rollout.vllm_python))
        variables["PATH"] = os.pathsep.join([tools, *filter(None, [kept.get("PATH")])])
    users_own = {k: kept[k] for k in CPU_VARIABLES if k in kept}
    return kept | variables | users_own


def _words(name: str, value: Any) -> Sequence[str]:
    option = name.replace("_", "-")
    if value is None:
        return ()
    if isinstance(value, bool):
        return (f"--{option}" if value else f"--no-{option}",)
    if isinstance(value, Mapping):
        return (f"--{option}", json.dumps(value))
    if isinstance(value, (list, tuple)):
        return (f"--{option}", *map(str, value))
    return (f"--{option}", str(value))


def _cpu_cache_bytes(config: Config, model: Mapping[str, Any]) -> int:
    """Keys and values of the answers that are sampled at once, at their longest: at most 128 of them or 4 GiB.

    By itself vLLM would take most of the machine's memory, which the trainer shares.
    """
    rollout = config.rollout
    longest = config.data.max_prompt_tokens + rollout.max_new_tokens
    tokens = -(-longest // CPU_BLOCK_TOKENS) * CPU_BLOCK_TOKENS
    heads = model["num_attention_heads"]
    head_dim = model.get("head_dim") or model["hidden_size"] // heads
    width = 2 * model["num_hidden_layers"] * (model.get("num_key_value_heads") or heads) * head_dim
    one = tokens * width * (4 if config.model.dtype == "float32" else 2)
    sequences = min(rollout.prompts_per_step * rollout.group_size, MAX_CPU_SEQUENCES)
    # One more: vLLM keeps a block for itself.
    return max(2 * one, min((sequences + 1) * one, MAX_CPU_CACHE_BYTES))
