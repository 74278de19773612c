"""What the gloo workers run for the export tests."""

import os
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoConfig

from rest_megatron.config.schema import Config
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.distributed.startup import initialize
from rest_megatron.errors import CheckpointError
from rest_megatron.model import gather as stage
from rest_megatron.model import huggingface as hf
from rest_megatron.model.huggingface import RandomWeights, Safetensors, export, load_weights
from rest_megatron.model.model import DTYPES, Policy
from rest_megatron.utils import files
from tests.distributed.cases import Layout, make_config, named, share, start
from tests.tiny import Answers


def loaded(config: Config, parallel: Parallel) -> Policy:
    """A policy with the weights of `config.model.path`, without an engine around it."""
    path = Path(config.model.path)
    model = AutoConfig.from_pretrained(path)
    model.dtype = DTYPES[config.model.dtype]
    policy = Policy(model, config, parallel)
    source = RandomWeights(config.run.seed, model) if config.model.random_init else Safetensors(path, model)
    load_weights(policy, source, parallel)
    return policy


def exported_twice(launch: Launch, model: Path, layout: Layout, dtype: str, directory: Path, file_bytes: int) -> None:
    """Import `model`, export it to first/, import that, export it to second/."""
    config = make_config(model, layout, dtype)
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    with mock.patch.object(hf, "MAX_FILE_BYTES", file_bytes):
        export(loaded(config, parallel), parallel, directory / "first", model)
        config = make_config(directory / "first", layout, dtype)
        export(loaded(config, parallel), parallel, directory / "second", directory / "first")


def trained_and_exported(launch: Launch, model: Path, layout: Layout, answers: Answers, directory: Path) -> dict:
    """Weights after two updates, and their export."""
    actor, parallel = start(launch, make_config(model, layout))
    ours, _ = share(answers, parallel)
    for _ in range(2):
        actor.update(*ours)
    actor.export(directory)
    return {"weights": named(actor, parallel, lambda p: p.data)}


def random_weights(launch: Launch, model: Path, layout: Layout, seed: int) -> dict:
    """The weights of an actor that starts from `model.random_init`."""
    config = make_config(model, layout)
    config = replace(config, run=replace(config.run, seed=seed), model=replace(config.model, random_init=True))
    actor, parallel = start(launch, config)
    return {"weights": named(actor, parallel, lambda p: p.data)}


def interrupted_export(launch: Launch, model: Path, directory: Path) -> str:
    """Break an export after its weights are written, before it is complete; the error's text."""
    config = make_config(model, Layout())
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    policy = loaded(config, parallel)
    with mock.patch.object(hf, "write_companions", side_effect=OSError("disk full")):
        try:
            export(policy, parallel, directory, model)
        except CheckpointError as error:
            return str(error)
    return ""


def killed_between_renames(launch: Launch, model: Path, directory: Path) -> None:
    """An export that is killed when the old one has stepped aside, before the new one has its name."""
    config = make_config(model, Layout())
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    rename = files.rename

    def killed(path: Path, to: Path) -> None:
        if to == directory:
            raise KeyboardInterrupt
        rename(path, to)

    with mock.patch.object(files, "rename", killed), suppress(KeyboardInterrupt):
        export(loaded(config, parallel), parallel, directory, model)


def recorded_export(launch: Launch, model: Path, layout: Layout, directory: Path) -> list[tuple[str, str]]:
    """What an export syncs, and renames, in this order: ("sync", path) and ("rename", new path)."""
    config = make_config(model, layout)
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    policy, events = loaded(config, parallel), []
    rename, fsync = os.rename, os.fsync

    def renamed(path, to) -> None:
        events.append(("rename", str(to)))
        rename(path, to)

    def synced(descriptor) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    with mock.patch("os.rename", renamed), mock.patch("os.fsync", synced):
        export(policy, parallel, directory, model)
    return events


def partly_failed_export(launch: Launch, model: Path, layout: Layout, directory: Path, bad_rank: int) -> str:
    """An export that one rank has no room for: the error's text, on every rank."""
    config = make_config(model, layout)
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    policy = loaded(config, parallel)
    full = mock.patch.object(stage, "save_file", side_effect=OSError(28, "No space left on device"))
    with full if launch.rank == bad_rank else nullcontext():
        try:
            export(policy, parallel, directory, model)
        except CheckpointError as error:
            return str(error)
    return ""
