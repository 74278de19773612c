"""What the gloo workers run for the tests of the checkpoint store."""

import random
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.optimizer_state import MOMENTS, link_states
from rest_megatron.checkpoint import shards, store
from rest_megatron.checkpoint.rng import rng_states
from rest_megatron.checkpoint.store import CheckpointStore
from rest_megatron.config.schema import CheckpointConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.model.mapping import mapped_parameters
from tests.distributed.cases import (
    Layout,
    make_config,
    named,
    replica_difference,
    share,
    start,
    tied_copy_difference,
)
from tests.tiny import Answers

OPTIM = {"warmup_steps": 3, "schedule": "linear", "min_lr_ratio": 0.1}
TOTAL_STEPS = 8
STATE = {"cursor": {"epoch": 1}, "means": [0.5, 1e-30]}


def write_companions(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "qwen3"}')


def opened(
    launch: Launch, model: Path, layout: Layout, dtype: str, directory: Path, **settings
) -> tuple[Actor, Parallel, CheckpointStore]:
    """A fresh actor and a store for it."""
    actor, parallel = start(launch, make_config(model, layout, dtype, **OPTIM), TOTAL_STEPS)
    return actor, parallel, CheckpointStore(directory, actor, parallel, CheckpointConfig(**settings), write_companions)


def state_of(actor: Actor, parallel: Parallel) -> dict:
    """Whole masters, moments and working weights of this stage, as DeepSpeed itself gathers them; and the counters."""
    link_states(actor.zero.optimizer)
    moments = {
        kind: named(actor, parallel, partial(safe_get_full_optimizer_state, optim_state_key=kind)) for kind in MOMENTS
    }
    return {
        "master": named(actor, parallel, safe_get_full_fp32_param),
        **moments,
        "weights": named(actor, parallel, lambda p: p.data),
        "counters": actor.counters(),
        "learning_rates": [group["lr"] for group in actor.zero.optimizer.optimizer.param_groups],
    }


def rounded(actor: Actor) -> bool:
    """Whether every parameter of this rank, but a tied copy, is the rounding of its master."""
    pairs = [(m, safe_get_full_fp32_param(m.parameter)) for m in mapped_parameters(actor.policy)]
    return all(m.is_copy or torch.equal(m.parameter.data, master.to(m.parameter.dtype)) for m, master in pairs)


def trained_and_saved(
    launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str, directory: Path, saves: bool = True
) -> dict:
    """Two updates, a save, two more; the state at the save and at the end, and the last two updates' metrics."""
    actor, parallel, checkpoints = opened(launch, model, layout, dtype, directory)
    ours, _ = share(answers, parallel)
    if saves:
        checkpoints.save(0, STATE)
    for _ in range(2):
        actor.update(*ours)
    saved = state_of(actor, parallel)
    if saves:
        checkpoints.save(2, STATE, {"experience.jsonl": '{"answer": "naïve"}\n'})
    metrics = [actor.update(*ours).metrics for _ in range(2)]
    return {"saved": saved, "metrics": metrics, "end": state_of(actor, parallel)}


def loaded_and_trained(
    launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str, directory: Path
) -> dict:
    """A fresh actor with the checkpoint's state, and two updates from there."""
    actor, parallel, checkpoints = opened(launch, model, layout, dtype, directory.parent)
    ours, _ = share(answers, parallel)
    same_layout = checkpoints.load(directory)
    result = {
        "same_layout": same_layout,
        "loaded": state_of(actor, parallel),
        "rounded": rounded(actor),
        "replicas": replica_difference(actor, parallel),
        "tied": tied_copy_difference(actor, parallel),
    }
    metrics = [actor.update(*ours).metrics for _ in range(2)]
    return {**result, "metrics": metrics, "end": state_of(actor, parallel)}


def negative_zeros(launch: Launch, model: Path, layout: Layout, directory: Path) -> bool:
    """Whether moments of -0.0, which a sum over ranks turns into 0.0, are loaded as they were saved."""
    actor, parallel, checkpoints = opened(launch, model, layout, "float32", directory)
    base = actor.zero.optimizer.optimizer
    link_states(actor.zero.optimizer)
    moments = [base.state[p]["exp_avg"] for group in base.param_groups for p in group["params"]]
    for moment in moments:
        moment.fill_(-0.0)
    checkpoints.save(1, {})
    for moment in moments:
        moment.fill_(7.0)
    checkpoints.load(directory / "step-00000001")
    found = {float(x) for m in moments for x in m.unique()}
    return found <= {0.0, 7.0} and all(bool(m[m != 7.0].signbit().all()) for m in moments)


def in_small_pieces(launch: Launch, model: Path, layout: Layout, answers: Answers, directory: Path) -> dict:
    """`trained_and_saved` and loaded again, with many files and many reads instead of one."""
    with mock.patch.object(shards, "GROUP_BYTES", 40_000):
        actor, parallel, checkpoints = opened(launch, model, layout, "float32", directory)
        ours, _ = share(answers, parallel)
        actor.update(*ours)
        checkpoints.save(1, {})
        saved = state_of(actor, parallel)
        actor.update(*ours)
        checkpoints.load(directory / "step-00000001")
        return {"saved": saved, "loaded": state_of(actor, parallel)}


def draws(device: torch.device) -> list:
    """The next value of every generator, and of a kept second normal value."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(2, device=device).tolist()
    plain = torch.rand(2).tolist()
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), plain, tracked]


def random_states(launch: Launch, model: Path, layout: Layout, directory: Path) -> tuple[list, list, list, list, list]:
    """Draws from earlier states and after a save; after each was loaded; and after loading it as another layout's."""
    actor, parallel, checkpoints = opened(launch, model, layout, "float32", directory)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(parallel.rank)
    # Each keeps its second normal value for the next call.
    draws(parallel.device)
    earlier = rng_states(parallel.device)
    from_earlier = draws(parallel.device)
    now = rng_states(parallel.device)
    checkpoints.save(1, {}, rng=earlier)
    checkpoints.save(2, {})
    assert all(torch.equal(state, now[name]) for name, state in rng_states(parallel.device).items())
    after_save = draws(parallel.device)
    loaded = []
    for step in (1, 2):
        assert checkpoints.load(directory / f"step-0000000{step}")
        loaded.append(draws(parallel.device))
    states = rng_states(parallel.device)
    with mock.patch.object(store, "_layout", return_value={"world_size": 77}):
        assert not checkpoints.load(directory / "step-00000001")
    untouched = rng_states(parallel.device)
    assert all(torch.equal(states[name], untouched[name]) for name in states)
    return from_earlier, after_save, *loaded, draws(parallel.device)


def saved_behind_training(launch: Launch, model: Path, layout: Layout, answers: Answers, directory: Path) -> dict:
    """A save in the background that writes nothing before two more updates are done."""
    actor, parallel, checkpoints = opened(launch, model, layout, "bfloat16", directory, background=True)
    ours, _ = share(answers, parallel)
    actor.update(*ours)
    saved, trained = state_of(actor, parallel), threading.Event()

    def late(*args):
        assert trained.wait(60)
        return shards.write_share(*args)

    state = {"cursor": [1]}
    with mock.patch.object(store, "write_share", late):
        checkpoints.save(1, state)
        state["cursor"].append(2)
        for _ in range(2):
            actor.update(*ours)
        unfinished = not (directory / "step-00000001").exists()
        trained.set()
        checkpoints.save(3, {})
        assert (directory / "step-00000001").exists(), "the next save waits for the one under way"
        checkpoints.close()
    end = state_of(actor, parallel)
    read = {}
    for step in (1, 3):
        assert checkpoints.load(directory / f"step-0000000{step}")
        read[step] = state_of(actor, parallel)
    return {"saved": saved, "unfinished": unfinished, "first": read[1], "end": end, "second": read[3]}
