"""The `check` command: what a job needs, looked at before one is queued. One process, no GPU, no process group."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

from rest_megatron.commands.catalogue import Check
from rest_megatron.config.check import check_data_files, check_run, check_run_dir, read_model_config
from rest_megatron.config.check_rollout import without_engine
from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.types import Prompt
from rest_megatron.utils.libraries import has_apex, has_transformer_engine, quiet_libraries
from rest_megatron.utils.text import counted

PACKAGES = ("torch", "megatron-core", "deepspeed", "transformers", "triton")
OPTIONAL = {"Transformer Engine": has_transformer_engine, "Apex": has_apex}


def main(config: Config, options: Check, stream: TextIO) -> None:
    """Write one line per finding to `stream`, "ok" at the end.

    Raises ConfigError, DataError or CheckpointError for the first thing that would stop a job of that
    many ranks.
    """
    for findings in (machine(), layout(config, options.world_size), model(config), data(config), run_directory(config)):
        for name, finding in findings:
            stream.write(f"{name:<20} {finding}\n")
    stream.write("ok\n")


def machine() -> Iterator[tuple[str, str]]:
    """Versions, accelerator and compiler of this machine."""
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    for package in PACKAGES:
        yield package, _version(package) or "not installed"
    for name, installed in OPTIONAL.items():
        yield name, "installed: used on CUDA" if installed() else "not installed: not needed"
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield "CUDA", f"{torch.version.cuda}, {torch.cuda.device_count()} x {', '.join(sorted(names))}"
    else:
        yield "CUDA", f"no device (torch built {'for ' + torch.version.cuda if torch.version.cuda else 'without CUDA'})"
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    yield "C++ compiler", compiler or "none: DeepSpeed's and torch's compiled operators cannot be built"


def layout(config: Config, world_size: int) -> Iterator[tuple[str, str]]:
    """The configuration holds for `world_size` ranks."""
    check_run(config, world_size)
    parallel = config.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    yield "configuration", f"valid for {counted(world_size, 'rank')}: TP {tp} x PP {pp} x DP {world_size // (tp * pp)}"


def model(config: Config) -> Iterator[tuple[str, str]]:
    """The model's tokenizer is readable and fits its vocabulary."""
    from rest_megatron.data.chat import require_chat_template
    from rest_megatron.data.template import check_template
    from rest_megatron.data.tokenizer import read_tokenizer
    from rest_megatron.data.tokens import token_bytes

    hf = read_model_config(config)
    _check_weights(config)
    yield "model", f"{hf['model_type']}, {hf['num_hidden_layers']} layers, in {config.model.path}"
    tokenizer = read_tokenizer(config)
    largest = max(tokenizer.get_vocab().values())
    if largest >= hf["vocab_size"]:
        rule = f"holds a tokenizer with token id {largest}, but config.json has vocab_size={hf['vocab_size']}"
        refuse(config, "model.path", rule, "Tokenizer and weights are of different models: download both again")
    token_bytes(tokenizer, hf["vocab_size"])
    require_chat_template(tokenizer)
    for finding in check_template(tokenizer) or ["earlier turns stay as they were, thoughts included"]:
        yield "chat template", finding
    yield "tokenizer", f"token ids 0..{largest} of a vocabulary of {hf['vocab_size']}"


def data(config: Config) -> Iterator[tuple[str, str]]:
    """Every row of every data file that is set can be used."""
    from rest_megatron.commands.inputs import read_demonstrations, read_prompts
    from rest_megatron.data.tokenizer import read_tokenizer

    if config.data.train or not config.sft.data:
        check_data_files(config, "train")
    if config.sft.data:
        check_data_files(config, "sft")
    tokenizer = read_tokenizer(config)
    config = without_engine(config) if config.train.debug == "train_only" else config
    for key, path in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        if path:
            prompts = read_prompts(config, tokenizer, path)
            yield key, f"{counted(len(prompts), 'prompt')} in {path}"
            if key == "data.train" and config.train.debug == "train_only":
                yield "train.replay", _replay(config, prompts)
    if config.sft.data:
        yield (
            "sft.data",
            f"{counted(len(read_demonstrations(config, tokenizer)), 'demonstration')} in {config.sft.data}",
        )


def run_directory(config: Config) -> Iterator[tuple[str, str]]:
    """run.dir exists or can be made, holds no earlier run, and takes files."""
    check_run_dir(config, "train")
    wanted = Path(config.run.dir).absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not existing.is_dir():
        refuse(config, "run.dir", f"cannot be a directory: {existing} is a file", "Choose another run.dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        refuse(config, "run.dir", f"cannot be written: no permission in {existing}", "Choose another run.dir")
    yield "run.dir", f"{wanted} is writable"


def _check_weights(config: Config) -> None:
    """The architecture is supported, and the headers of the safetensors hold every tensor of it."""
    # Only here: these import Megatron, which takes seconds.
    quiet_libraries()
    from rest_megatron.model.huggingface import read_hf_config, weight_source
    from rest_megatron.model.model import check_supported

    hf = read_hf_config(Path(config.model.path))
    check_supported(hf)
    weight_source(config.model, config.run.seed, hf)


def _replay(config: Config, prompts: Sequence[Prompt]) -> str:
    """Every answer that is to be trained on again can be used."""
    # Only here: it imports Megatron.
    from rest_megatron.step.replay import open_replay

    open_replay(config, prompts)
    return f"the answers of {config.train.steps} steps in {config.train.replay}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
