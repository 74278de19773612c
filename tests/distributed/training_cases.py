"""The `train` and `profile` commands inside gloo workers, on answers from a script that every layout sees alike."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

from transformers import AutoTokenizer

from rest_megatron import session
from rest_megatron.actor.actor import Actor
from rest_megatron.commands import profile, rollout, train
from rest_megatron.commands.catalogue import Profile
from rest_megatron.config import load
from rest_megatron.config.check import check_run
from rest_megatron.distributed.launch import Launch
from rest_megatron.errors import ConfigError
from rest_megatron.rollout import build
from rest_megatron.types import Request, Sample
from tests.paths import MODEL
from tests.system.runs import metrics

CALL = '<think> use </think>\n<tool_call>\n{"name": "set_alarm", "parameters": {"day": "%s"}}\n</tool_call>'
# Right, wrong value, without a thought's end, unwanted: two of these answer each prompt, so that scores differ.
ANSWERS = (
    CALL % "Monday",
    CALL % "Friday",
    '<think> use <tool_call>\n{"name": "set_alarm"',
    "<think> no </think>\n<response> hello </response>",
)


class ScriptedEngine:
    """A rollout engine that answers from a script, the n-th answer of all it ever gave from a fixed cycle."""

    def __init__(self, policy, parallel, config, stop_token_ids):
        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.answers = [(*tokenizer.encode(text, add_special_tokens=False), stop_token_ids[0]) for text in ANSWERS]
        self.uniform = -math.log(len(tokenizer))
        self.given = 0

    def publish(self, version: int) -> None:
        self.version = version

    def generate(self, requests: Sequence[Request], *, group_size: int, seed: int):
        return [[self._next(request.prompt_ids) for _ in range(group_size)] for request in requests]

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _next(self, prompt) -> Sample:
        ids = self.answers[self.given * 3 // 2 % len(self.answers)]
        self.given += 1
        return Sample(tuple(prompt), ids, (-1.0,) * len(ids), "stop", self.version)


class NoisyEngine(ScriptedEngine):
    """A scripted engine whose log-probs lie around a uniform policy's, some answers' further from it than others'."""

    def _next(self, prompt) -> Sample:
        sample = super()._next(prompt)
        whole = (0.0, 0.7, 0.2, -0.1, -0.8)[self.given % 5]
        noise = (0.5 * math.sin(2.4 * self.given + 1.7 * i) for i in range(len(sample.token_ids)))
        return replace(sample, log_probs=tuple(self.uniform + whole + x for x in noise))


class NoEngine:
    """The engine of a run that must not ask one."""

    def __init__(self, *_):
        pass

    def close(self) -> None:
        pass


def ran(launch: Launch, command: str, files: Sequence[str], overrides: Sequence[str], engine: type) -> None:
    """Run a command to its end, `engine` in the place of the sampler."""
    config = load(files, overrides)
    check_run(config, launch.world_size)
    # The pool leaves the groups itself, after it has destroyed the engine.
    with mock.patch.object(build, "Sampler", engine), mock.patch.object(session, "shutdown"):
        if command.startswith("profile"):  # "profile" or "profile N"
            profile.main(config, Profile(tokens=int(command[len("profile") :] or 0)), launch)
        else:
            {"train": train.main, "rollout": rollout.main}[command](config, launch)


def refused(launch: Launch, overrides: Sequence[str], environment: Mapping[str, str]) -> str:
    """The ConfigError of a training run in this environment."""
    with mock.patch.dict(os.environ, environment):
        try:
            ran(launch, "train", (), overrides, ScriptedEngine)
        except ConfigError as error:
            return str(error)
    return ""


def calls_of(launch: Launch, command: str, overrides: Sequence[str]) -> list[str]:
    """The calls of engine and actor while a command ran, in order."""
    calls: list[str] = []

    def noting(owner: type, name: str):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        return mock.patch.object(owner, name, call)

    with ExitStack() as stack:
        for owner, names in ((ScriptedEngine, ("publish", "generate", "sleep")), (Actor, ("log_probs", "update"))):
            for name in names:
                stack.enter_context(noting(owner, name))
        ran(launch, command, (), overrides, ScriptedEngine)
    return calls


def read_metrics(run_dir: Path) -> list[dict]:
    """`metrics` of each step; null is nan."""
    return [{k: math.nan if v is None else v for k, v in row.items()} for row in metrics(run_dir)]
