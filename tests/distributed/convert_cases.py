"""What the gloo workers run for the conversion tests: Megatron-core's own saving and loading of distributed
checkpoints."""

import multiprocessing
import queue
from argparse import Namespace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async

from rest_megatron.checkpoint.store import CheckpointStore
from rest_megatron.config.schema import CheckpointConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.startup import initialize
from rest_megatron.model.huggingface import write_companions
from rest_megatron.model.mapping import mapped_parameters
from rest_megatron.model.model import Policy
from tests.distributed.cases import Layout, make_config, share, start
from tests.distributed.export_cases import loaded
from tests.tiny import Answers


def sharded_state(policy: Policy, metadata: dict | None) -> dict:
    """What Megatron-core is asked to save or to load."""
    chunks = list(policy.chunks)
    names = [f"model{i}" for i in range(len(chunks))] if len(chunks) > 1 else ["model"]
    return {name: chunk.sharded_state_dict(metadata=metadata) for name, chunk in zip(names, chunks, strict=True)}


def saved_by_megatron(
    launch: Launch, model: Path, layout: Layout, dtype: str, directory: Path, metadata: dict | None = None
) -> None:
    """Save the weights of `model` the way Megatron-LM does."""
    config = make_config(model, layout, dtype)
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    moments = torch.full((6, 4), float(launch.rank))
    offsets = (0, launch.rank, launch.world_size)
    state = {
        **sharded_state(loaded(config, parallel), metadata),
        # What is not the model's: it is not looked at.
        "optimizer": ShardedTensor.from_rank_offsets("optimizer.state.exp_avg.output_layer.weight", moments, offsets),
        "rng": ShardedObject("rng_state", [{"seed": 1}], (launch.world_size,), (launch.rank,)),
        "iteration": 7,
        "args": Namespace(num_layers=4),
    }
    if launch.rank == 0:
        directory.mkdir(parents=True)
    dist.barrier()
    # Megatron-core writes by processes of its own, and collects from them by a queue in yet another.
    own = multiprocessing.current_process()._config
    with mock.patch.dict(own, daemon=False), mock.patch.object(filesystem_async, "_results_queue", queue.Queue()):
        dist_checkpointing.save(state, str(directory), content_metadata=metadata)


def loaded_by_megatron(launch: Launch, model: Path, layout: Layout, dtype: str, checkpoint: Path) -> list[str]:
    """The parameters that are not those of `model` after Megatron-core has loaded `checkpoint` into this layout."""
    config = make_config(model, layout, dtype)
    parallel = initialize(launch, config.parallel, torch.device("cpu"), seed=0)
    expected = {m.name + str(i): m.parameter.clone() for i, m in enumerate(mapped_parameters(loaded(config, parallel)))}
    policy = loaded(config, parallel)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(torch.nan)
    metadata = dist_checkpointing.load_content_metadata(str(checkpoint))
    state = dist_checkpointing.load(sharded_state(policy, metadata), str(checkpoint))
    for chunk, name in zip(policy.chunks, sharded_state(policy, metadata), strict=True):
        chunk.load_state_dict(state[name])
    return [
        m.name
        for i, m in enumerate(mapped_parameters(policy))
        if not torch.equal(m.parameter, expected[m.name + str(i)])
    ]


def trained_saved_and_exported(
    launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str, directory: Path
) -> None:
    """A checkpoint of ours after one update, in directory/checkpoints, and what the run exports: directory/exported."""
    actor, parallel = start(launch, make_config(model, layout, dtype))
    ours, _ = share(answers, parallel)
    store = CheckpointStore(
        directory / "checkpoints",
        actor,
        parallel,
        CheckpointConfig(),
        lambda path: write_companions(actor.policy.hf, model, path),
    )
    store.save(0, {})
    actor.update(*ours)
    store.save(1, {"cursor": 3})
    actor.export(directory / "exported")
