"""What the gloo workers run for the tests of the vLLM engine: rank 0 also keeps the fake server."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from rest_megatron.actor.actor import Actor
from rest_megatron.config.schema import Config, RolloutConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.errors import RestError
from rest_megatron.model import gather as stage
from rest_megatron.rollout.engine import number_requests
from rest_megatron.rollout.vllm import publisher as sync
from rest_megatron.rollout.vllm.engine import VLLMEngine
from rest_megatron.types import Request
from tests.distributed.cases import Layout, make_config, named, share, start
from tests.distributed.fake_faults import Fault
from tests.distributed.fake_vllm import FakeServer, FakeVLLM
from tests.tiny import VOCAB, Answers

TEMPERATURE = 0.7
GROUP_SIZE = 3
MAX_NEW_TOKENS = 12
STOP = list(range(0, VOCAB, 7))
# The first two are probed with; the long one is what a prefix cache would keep.
PROMPTS = [list(range(1, 41)), [7, 8, 9, 11], [5]]
SYNC_SECONDS = 2.0
GENERATE_SECONDS = 3.0


@dataclass(frozen=True)
class Scenario:
    """A server with its faults, and what the engine may do about them."""

    faults: Sequence[Fault] = ()
    modes: Sequence[str] = ()
    restartable: bool = True
    uds: bool = False


def rollout_config(model: Path, layout: Layout, directory: Path | None) -> Config:
    rollout = RolloutConfig(
        engine="vllm",
        group_size=GROUP_SIZE,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        sync_dir=None if directory is None else str(directory),
        sync_timeout=SYNC_SECONDS,
        generate_timeout=GENERATE_SECONDS,
    )
    return replace(make_config(model, layout), rollout=rollout)


@contextmanager
def opened(
    actor: Actor, parallel: Parallel, config: Config, scenario: Scenario, can_sleep: bool = False
) -> Iterator[tuple[VLLMEngine, FakeServer | None]]:
    server = None
    if parallel.rank == 0:
        uds = Path(config.rollout.sync_dir).with_suffix(".socket") if scenario.uds else None
        fake = FakeVLLM(Path(config.model.path), uds, [replace(f) for f in scenario.faults], scenario.modes)
        server = FakeServer(fake, scenario.restartable, can_sleep)
    try:
        yield VLLMEngine(server, actor, parallel, config, STOP, PROMPTS[:2]), server
    finally:
        if server is not None:
            server.fake.stop()


def answers_of(engine: VLLMEngine, seed: int = 5) -> list:
    requests = number_requests(PROMPTS, MAX_NEW_TOKENS)
    return [s for group in engine.generate(requests, group_size=GROUP_SIZE, seed=seed) for s in group]


def faults_in_a_row(
    launch: Launch, model: Path, layout: Layout, directory: Path, scenarios: dict[str, Scenario]
) -> dict[str, dict]:
    """Publish and generate once in each scenario: samples or the error, and what happened on the way."""
    config = rollout_config(model, layout, directory)
    actor, parallel = start(launch, config)
    return {name: _one(actor, parallel, config, scenario) for name, scenario in scenarios.items()}


def _one(actor: Actor, parallel: Parallel, config: Config, scenario: Scenario) -> dict:
    started = time.monotonic()
    result: dict = {"samples": [], "error": ""}
    with opened(actor, parallel, config, scenario) as (engine, server):
        try:
            engine.publish(3)
            result["samples"] = answers_of(engine)
        except RestError as error:
            result["error"] = str(error)
        result["seconds"] = time.monotonic() - started
        if server is not None:
            left = sorted(path.name for path in Path(config.rollout.sync_dir).iterdir())
            result |= {"calls": server.fake.calls, "restarts": server.restarts, "left": left}
    return result


def followed(launch: Launch, model: Path, layout: Layout, answers: Answers, directory: Path, modes=()) -> dict:
    """Publish, generate, update, publish, generate: samples and weights each time, and the files that were pushed."""
    config = rollout_config(model, layout, directory)
    actor, parallel = start(launch, config)
    ours, _ = share(answers, parallel)
    rounds, error = [], ""
    with (
        mock.patch.object(sync, "MIN_FILE_BYTES", 100_000),
        opened(actor, parallel, config, Scenario(modes=modes)) as (engine, server),
    ):
        for version in (0, 2):
            try:
                engine.publish(version)
                samples = answers_of(engine)
            except RestError as raised:
                error = str(raised)
                break
            pushed = dict(server.fake.pushed) if server else {}
            weights = named(actor, parallel, lambda p: p.data)
            rounds.append({"samples": samples, "again": answers_of(engine), "weights": weights, "pushed": pushed})
            for _ in range(2):
                actor.update(*ours)
        calls = server.fake.calls if server else []
        how = {"group_size": GROUP_SIZE, "seed": 5}
        shorter = [Request(prompt, number + 1, number) for number, prompt in enumerate(PROMPTS)]
        limited = [] if error else engine.generate(shorter, **how)
        fewer = [Request(PROMPTS[number], MAX_NEW_TOKENS, number) for number in (2, 0)]
        numbered = [] if error else engine.generate(fewer, **how)
    return {"rounds": rounds, "error": error, "calls": calls, "limited": limited, "numbered": numbered}


def slept(launch: Launch, model: Path, layout: Layout, directory: Path, can_sleep: bool) -> dict:
    """Publish twice, generate, sleep twice, publish the same version, generate; the calls after each."""
    config = rollout_config(model, layout, directory)
    actor, parallel = start(launch, config)
    calls = []
    with opened(actor, parallel, config, Scenario(), can_sleep) as (engine, server):
        steps = [lambda: engine.publish(1), lambda: engine.publish(1), engine.sleep, engine.sleep]
        for step in [*steps, lambda: engine.publish(1)]:
            step()
            if server is not None:
                calls.append(list(server.fake.calls))
                server.fake.calls.clear()
        return {"calls": calls, "samples": answers_of(engine)}


def _dropping(write, name: str):
    return lambda tensors, path, **rest: write({n: t for n, t in tensors.items() if n != name}, path, **rest)


def _twice(tensors, path, **rest) -> None:
    save_file(tensors | {"model.embed_tokens.weight": torch.zeros(1)}, path)  # another stage has it, too


def _misshapen(tensors, path, **rest) -> None:
    save_file({n: t[:-1].clone() if n == "model.norm.weight" else t for n, t in tensors.items()}, path)


def _truncated(tensors, path, **rest) -> None:
    save_file(tensors, path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)


def _full(tensors, path, **rest) -> None:
    raise OSError(28, "No space left on device")


def _half_precision(tensors, path, **rest) -> None:
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)


BROKEN_WRITERS = {
    "missing": _dropping(save_file, "model.norm.weight"),
    "duplicate": _twice,
    "misshapen": _misshapen,
    "truncated": _truncated,
    "disk full": _full,
    "other dtype": _half_precision,
}


def badly_written(launch: Launch, model: Path, layout: Layout, directory: Path, bad_rank: int) -> dict[str, dict]:
    """Publish while one rank writes wrong files, in every way of BROKEN_WRITERS; then once with good ones."""
    config = rollout_config(model, layout, directory)
    actor, parallel = start(launch, config)
    results = {}
    with opened(actor, parallel, config, Scenario()) as (engine, server):
        for name, writer in [*BROKEN_WRITERS.items(), ("good", None)]:
            error = ""
            broken = writer is not None and launch.rank == bad_rank
            with mock.patch.object(stage, "save_file", writer if broken else save_file):
                try:
                    engine.publish(1)
                except RestError as raised:
                    error = str(raised)
            left = [path.name for path in directory.iterdir()]
            results[name] = {"error": error, "calls": list(server.fake.calls) if server else [], "left": left}
    return results
