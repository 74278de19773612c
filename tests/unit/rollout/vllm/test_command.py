"""The command line and the environment of a vLLM server."""

import io
import itertools
import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from rest_megatron import cli
from rest_megatron.commands import print_server
from rest_megatron.config import load
from rest_megatron.config.check import MODEL_TYPES, check_settings
from rest_megatron.errors import ConfigError
from rest_megatron.rollout.vllm.command import (
    CPU_VARIABLES,
    WORKER_DIRECTORY,
    server_arguments,
    server_command,
    server_environment,
)

# Qwen3-14B; keys and values of a token: 2 x 40 layers x 8 heads x 128 x 2 bytes = 160 KiB.
MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SPAWN = ["rollout.engine=vllm", "rollout.vllm_python=/env/bin/python", "model.path=/models/policy"]


def arguments(*words: str, model=MODEL, on_cpu=False) -> dict:
    return server_arguments(load([], [*SPAWN, *words]), model, on_cpu)


def test_what_the_trainer_relies_on_is_said_to_the_server():
    words = ["data.max_prompt_tokens=1000", "rollout.max_new_tokens=24", "run.seed=7", "model.dtype=float32"]
    assert arguments(*words) == {
        "model": "/models/policy",
        "served_model_name": "policy",
        "runner": "generate",
        "dtype": "float32",
        "max_model_len": 1024,
        "seed": 7,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "load_format": "dummy",
        "worker_extension_cls": "rest_vllm_worker.Extension",
        "weight_transfer_config": {"backend": "rest_files"},
        "uvicorn_log_level": "warning",
    }


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_a_configuration_that_names_no_class_is_served_as_a_language_model(kind):
    bare = {name: value for name, value in MODEL.items() if name != "architectures"} | {"model_type": kind}
    (name,) = arguments(model=bare)["hf_overrides"]["architectures"]
    assert hasattr(transformers, name) and name.lower() == f"{kind}forcausallm"
    assert "hf_overrides" not in arguments(model=MODEL)


def test_relative_model_paths_are_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert arguments("model.path=runs/hf")["model"] == str(tmp_path / "runs" / "hf")


def test_the_users_arguments_win_and_reach_vllm_under_their_own_names():
    given = arguments(
        "vllm.tensor_parallel_size=2",
        "vllm.enforce_eager=true",
        "vllm.enable_prefix_caching=false",
        "vllm.load_format=auto",
        "vllm.uvicorn_log_level=null",
        "vllm.cudagraph_capture_sizes=[1, 2]",
        "vllm.compilation_config={mode: 0, note: 'two words'}",
    )
    command = server_command("/env/bin/python", given)
    assert command[:3] == ["/env/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    line = shlex.join(command)
    for words in (
        "--tensor-parallel-size 2",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--load-format auto",
        "--cudagraph-capture-sizes 1 2",
        '--compilation-config \'{"mode": 0, "note": "two words"}\'',
    ):
        assert f" {words}" in line
    assert "uvicorn" not in line and line.count("--load-format") == 1


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        # 4 layers x 2 x 4 heads x 16 x 4 bytes = 2 KiB; 128 tokens; 6 answers and one more.
        (["rollout.prompts_per_step=3", "rollout.group_size=2", "model.dtype=float32"], TINY, 7 * 128 * 2048),
        # 3,072 tokens of 160 KiB are 480 MiB; 128 of them are more than 4 GiB.
        ([], MODEL, 4 << 30),
        # One answer alone may need more than that.
        (["rollout.max_new_tokens=30000"], MODEL, 2 * 32128 * 163840),
    ],
    ids=["all answers of a step", "at most 4 GiB", "at least one answer"],
)
def test_on_cpu_the_cache_is_made_for_the_answers_of_a_step(words, model, expected):
    if model is TINY:
        words = [*words, "data.max_prompt_tokens=64", "rollout.max_new_tokens=32"]
    given = arguments(*words, model=model, on_cpu=True)
    assert given["kv_cache_memory_bytes"] == expected and given["enforce_eager"] is True
    # Seeded prompts that are read in parts end vLLM 0.32 on a CPU, so the longest must fit at once.
    assert given["enable_chunked_prefill"] is False and given["max_num_batched_tokens"] >= given["max_model_len"]


def test_on_cpu_the_users_settings_win_too():
    given = arguments("vllm.kv_cache_memory_bytes=77", "vllm.enforce_eager=false", on_cpu=True)
    assert (given["kv_cache_memory_bytes"], given["enforce_eager"]) == (77, False)


LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "x",
    "SLURM_PROCID": "0",
    "OMPI_COMM_WORLD_RANK": "0",
    "PMIX_RANK": "0",
    "PYTHONPATH": "/trainer",
    "PYTHONHOME": "/usr",
    "VIRTUAL_ENV": "/trainer/.venv",
}


def environment(*words: str, on_cpu=False, **environ: str) -> dict[str, str]:
    return server_environment(load([], [*SPAWN, *words]), environ, on_cpu)


def test_the_server_does_not_take_itself_for_a_rank_of_the_trainer():
    found = environment(**LAUNCHED, HOME="/home/user", NCCL_SOCKET_IFNAME="eth0", VLLM_API_KEY="s3")
    assert found.keys() & LAUNCHED.keys() == {"PYTHONPATH"}
    assert (found["HOME"], found["NCCL_SOCKET_IFNAME"], found["VLLM_API_KEY"]) == ("/home/user", "eth0", "s3")
    assert found["PYTHONPATH"] == str(WORKER_DIRECTORY) and (WORKER_DIRECTORY / "rest_vllm_worker.py").is_file()
    assert found["VLLM_SERVER_DEV_MODE"] == "1" and found["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(("path", "expected"), [("/usr/bin", "/env/bin:/usr/bin"), (None, "/env/bin")])
def test_tools_beside_the_interpreter_are_found_first(path, expected):
    assert environment(**({} if path is None else {"PATH": path}))["PATH"] == expected


def test_devices_are_the_trainers_own_unless_named():
    assert environment(CUDA_VISIBLE_DEVICES="0,1")["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment("rollout.vllm_devices='2,3'", CUDA_VISIBLE_DEVICES="0,1")["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in environment()


def test_cpu_settings_are_given_on_cpu_where_the_user_has_none():
    assert environment(on_cpu=True).items() >= CPU_VARIABLES.items()
    assert not environment().keys() & CPU_VARIABLES.keys()
    users = {"OMP_NUM_THREADS": "8", "VLLM_CPU_OMP_THREADS_BIND": "0-7", "TORCH_COMPILE_DISABLE": "0"}
    assert environment(on_cpu=True, **users).items() >= users.items()


# print-server


ATTACH = ["rollout.engine=vllm", "rollout.vllm_url=http://node7:8123", "run.device=cpu"]


@pytest.fixture
def model(tmp_path) -> Path:
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "config.json").write_text(json.dumps(TINY))
    return tmp_path / "a model"


def printed(model: Path, *words: str) -> str:
    config = load([], [*ATTACH, f"model.path={model}", *words])
    check_settings(config)
    stream = io.StringIO()
    print_server.main(config, stream)
    return stream.getvalue()


def test_the_printed_line_runs_in_a_shell_and_listens_where_the_url_says(model, tmp_path):
    line = printed(model, "vllm.compilation_config={mode: 0}")
    # A stand-in for the environment that holds vLLM.
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable} -IS\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(line, shell=True, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    words, variables = json.loads(done.stdout)
    assert line.count("\n") == 1 and words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    given = dict(itertools.pairwise(words))
    assert (given["--model"], given["--host"], given["--port"]) == (str(model), "node7", "8123")
    assert json.loads(given["--compilation-config"]) == {"mode": 0}
    assert variables["PYTHONPATH"] == str(WORKER_DIRECTORY) and variables["VLLM_SERVER_DEV_MODE"] == "1"
    assert variables.items() >= CPU_VARIABLES.items()


def test_the_command_line_prints_it_once_per_job(model, capsys):
    argv = ["print-server", *ATTACH, f"model.path={model}"]
    assert cli.main(argv, {}) == 0
    assert capsys.readouterr().out == printed(model)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    second = {"RANK": "1", "LOCAL_RANK": "1", **place}
    assert cli.main(argv, second) == 0
    assert capsys.readouterr().out == ""


def test_a_server_for_gpus_is_printed_unless_the_device_is_cpu(model):
    line = printed(model, "run.device=auto")
    assert "enforce-eager" not in line and "OMP_NUM_THREADS" not in line


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://node7", "--host node7 --port 80"), ("http://[::1]:99/", "--host ::1 --port 99")],
)
def test_the_port_of_the_scheme_is_the_default(model, url, expected):
    assert printed(model, f"rollout.vllm_url={url}").rstrip().endswith(expected)


def test_the_key_is_not_printed(model, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "hunter2")
    assert "hunter2" not in printed(model)


def test_a_server_for_https_cannot_be_printed(model):
    with pytest.raises(ConfigError, match=r"rollout.vllm_url=https://node7 .* plain HTTP"):
        printed(model, "rollout.vllm_url=https://node7")


def test_a_server_without_an_address_cannot_be_printed(model):
    with pytest.raises(ConfigError, match=r"rollout.vllm_url=.* does not say where"):
        printed(model, "rollout.vllm_url=null", "rollout.vllm_python=python")
