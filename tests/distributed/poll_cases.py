"""What the gloo workers run for the tests of safe points: ranks that are to stop in the middle of everything."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.comparison import compare_gradients
from rest_megatron.config.schema import ParallelConfig, RolloutConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.distributed.startup import initialize
from rest_megatron.distributed.stop import connect_stop_groups, exchange
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import ConfigError, Preempted
from rest_megatron.rollout.engine import number_requests
from rest_megatron.rollout.sampler import Sampler
from rest_megatron.step.score import score_groups
from rest_megatron.types import Prompt, Sample
from tests.distributed.cases import Layout, make_config, share, start
from tests.distributed.vllm_cases import PROMPTS, Scenario, answers_of, opened, rollout_config
from tests.tiny import Answers


class Script(Watch):
    """Never entered; gives a reason to stop when it is looked at for the `at`-th time, and from then on."""

    def __init__(self, at: int | None = None, reason: str = "SIGUSR1"):
        super().__init__()
        self.at, self.why, self.looks = at, reason, 0

    def exchange_reasons(self) -> str | None:
        self.looks += 1
        return self.why if self.at is not None and self.looks >= self.at else None


def begin(launch: Launch, watch: Watch) -> Parallel:
    with watch.patient():
        return initialize(launch, ParallelConfig(), torch.device("cpu"), 0, watch)


def signal_soon(seconds: float) -> None:
    threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM]).start()


def stopped_by(work: Callable[[], object]) -> str:
    try:
        work()
    except Preempted as stop:
        return stop.args[0]
    return ""


def polled(launch: Launch, plan: dict[int, tuple[int, str]]) -> tuple[int, str]:
    """The number of the poll that raised on this rank, and its reason; plan: (at, reason) of ranks that are to stop."""
    watch = Script(*plan.get(launch.rank, ()))
    parallel = begin(launch, watch)
    return next((i, why) for i in range(1, 10) if (why := stopped_by(parallel.poll)))


def heard(launch: Launch) -> tuple[str | None, float]:
    """What a rank hears, without a poll, of a signal that the last one got; and how long that takes."""
    with Watch() as watch:
        parallel = begin(launch, watch)
        parallel.poll()
        started = time.monotonic()
        if launch.rank == launch.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        while watch.exchange_reasons() is None and time.monotonic() < started + 10:
            time.sleep(0.01)
        seconds = time.monotonic() - started
        return stopped_by(parallel.poll), seconds


def stopped_alone(launch: Launch) -> tuple[str, float]:
    """The last rank is to stop while rank 0 works alone, 20 s long: why and when that ended."""
    with Watch(hang_timeout=1.0) as watch:
        parallel = begin(launch, watch)

        def work():
            for _ in range(2000):
                watch.check()
                time.sleep(0.01)

        started = time.monotonic()
        if launch.rank == launch.world_size - 1:
            # All others wait longer than hang_timeout before.
            signal_soon(1.5)
        return stopped_by(lambda: parallel.on_main(work)), time.monotonic() - started


def named_wrongly(launch: Launch) -> str:
    """What connecting the ranks says on a node without the interface that GLOO_SOCKET_IFNAME names."""
    begin(launch, Watch())
    with mock.patch.dict(os.environ, GLOO_SOCKET_IFNAME="nosuch0"):
        try:
            connect_stop_groups([launch.rank], timedelta(minutes=1))
        except ConfigError as error:
            return str(error)
    return ""


def one_slow_rank(launch: Launch) -> int:
    """Polls with the last rank three times as slow as the others, near the watchdog's limit."""
    with Watch(hang_timeout=1.5) as watch:
        parallel = begin(launch, watch)
        for _ in range(4):
            time.sleep(0.9 if launch.rank == launch.world_size - 1 else 0.3)
            parallel.poll()
    return launch.rank


def broken_off(
    launch: Launch, model: Path, layout: Layout, prompts: list[list[int]], rollout: RolloutConfig, at: int
) -> dict:
    """Draw with a reason to stop at the last rank's `at`-th look, then without; tokens drawn before, and answers."""
    config = replace(make_config(model, layout), rollout=rollout)
    actor, parallel = start(launch, config)
    last = launch.rank == launch.world_size - 1
    engine = Sampler(actor.policy, replace(parallel, watch=Script(at if last else None)), rollout, [])
    draws = []
    draw = engine._draw
    engine._draw = lambda *args: draws.append(1) or draw(*args)
    how = {"group_size": rollout.group_size, "seed": 5}
    requests = number_requests(prompts, rollout.max_new_tokens)
    reason = stopped_by(lambda: engine.generate(requests, **how))
    drawn = len(draws)
    engine.parallel = parallel
    return {"reason": reason, "draws": drawn, "groups": engine.generate(requests, **how)}


def signalled(launch: Launch, model: Path, layout: Layout, prompts: list[list[int]], rollout: RolloutConfig) -> dict:
    """Draw slowly with a signal to the last rank alone in the middle of it: draws and seconds until the end."""
    config = replace(make_config(model, layout), rollout=rollout)
    actor, parallel = start(launch, config)
    with Watch() as watch:
        parallel = watched(parallel, watch)
        engine = Sampler(actor.policy, parallel, rollout, [])
        draws, draw = [], engine._draw

        def slowly(*args):
            draws.append(1)
            if len(draws) == 20 and launch.rank == launch.world_size - 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.02)
            return draw(*args)

        engine._draw = slowly
        started = time.monotonic()
        requests = number_requests(prompts, rollout.max_new_tokens)
        reason = stopped_by(lambda: engine.generate(requests, group_size=1, seed=5))
        return {"reason": reason, "draws": len(draws), "seconds": time.monotonic() - started}


def watched(parallel: Parallel, watch: Watch) -> Parallel:
    """As `initialize` would have given it, with this watch."""
    watch.connect(partial(exchange, dist.distributed_c10d._get_default_store()))
    return replace(parallel, watch=watch)


def state_of(actor: Actor) -> list[torch.Tensor]:
    """Copies of all that an update changes on this rank: weights, masters, moments, schedule, version."""
    base = actor.zero.optimizer.optimizer
    masters = [partition for group in base.param_groups for partition in group["params"]]
    moments = [base.state[p][name] for p in masters if base.state[p] for name in ("exp_avg", "exp_avg_sq", "step")]
    numbers = torch.tensor([actor.zero.scheduler.last_epoch, actor.version])
    return [t.detach().clone() for t in (*actor.policy.parameters(), *masters, *moments, numbers)]


def updated_around_a_stop(
    launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str, looks: Sequence[int], measure: bool
) -> dict:
    """For each of `looks`: an update, then one that is stopped at that look of the last rank; at the end, an update.

    measure: what is stopped is a measurement of the gradients' variance.
    """
    actor, parallel = start(launch, make_config(model, layout, dtype))
    ours, _ = share(answers, parallel)
    last = launch.rank == launch.world_size - 1
    rounds, reasons = [], []

    def work():
        if measure:
            groups = [i % 2 for i in range(len(ours.trajectories))]
            arms = (ours.streams, ours.streams)
            compare_gradients(actor, ours.trajectories, groups, 2, arms, ours.advantages)
        else:
            actor.update(*ours)

    for at in looks:
        metrics = actor.update(*ours).metrics
        before = state_of(actor)
        actor.parallel = replace(parallel, watch=Script(at if last else None))
        reasons.append(stopped_by(work))
        actor.parallel = parallel
        rounds.append((metrics, before, state_of(actor)))
    final = actor.update(*ours).metrics
    return {"rounds": rounds, "reasons": reasons, "final": final, "state": state_of(actor)}


def uninterrupted(launch: Launch, model: Path, layout: Layout, answers: Answers, dtype: str, steps: int) -> dict:
    """`steps` updates, the last while all ranks are to stop: its metrics, the state, looks of one update."""
    actor, parallel = start(launch, make_config(model, layout, dtype))
    ours, _ = share(answers, parallel)
    watch = Script()
    actor.parallel = replace(parallel, watch=watch)
    for _ in range(steps - 1):
        actor.update(*ours)
    actor.parallel = replace(parallel, watch=Script(at=1))
    final = actor.update(*ours, interruptible=False).metrics
    return {"final": final, "looks": watch.looks // (steps - 1), "state": state_of(actor)}


class SlowReward:
    """0.2 s for each answer."""

    def __init__(self):
        self.scored = 0

    def read(self, ground_truth):
        return ground_truth

    def score(self, response, truth, **rest):
        self.scored += 1
        time.sleep(0.2)


def scored(launch: Launch) -> tuple[str, int, float]:
    """A slow reward with a signal to the last rank after a second: why it ended, answers that were scored, seconds."""
    with Watch(hang_timeout=0.6) as watch:
        parallel = begin(launch, watch)
        reward = SlowReward()
        sample, prompt = Sample((1,), (2,), (0.0,), "stop", 0), Prompt(0, (), "truth", (1,))
        started = time.monotonic()
        if launch.rank == launch.world_size - 1:
            signal_soon(1.0)
        reason = stopped_by(
            lambda: score_groups(
                [[sample] * 10] * 10, [prompt] * 10, reward, [b"a"] * 3, progress=0.0, step=1, parallel=parallel
            )
        )
        return reason, reward.scored, time.monotonic() - started


def vllm_stopped(launch: Launch, model: Path, layout: Layout, directory: Path, scenario: Scenario, when: str) -> dict:
    """A signal to the last rank before a publish or while a server does not answer; what ended, and the calls."""
    config = rollout_config(model, layout, directory)
    config = replace(config, rollout=replace(config.rollout, generate_timeout=60.0))
    actor, parallel = start(launch, config)
    with Watch() as watch:
        parallel = watched(parallel, watch)
        with opened(actor, parallel, config, scenario) as (engine, server):
            engine.publish(0)
            calls = len(server.fake.calls) if server else 0
            started = time.monotonic()
            if launch.rank == launch.world_size - 1:
                signal_soon(0.7)
            if when == "publish":
                while watch.exchange_reasons() is None:
                    time.sleep(0.01)
                reason = stopped_by(lambda: engine.publish(1))
            else:
                reason = stopped_by(lambda: answers_of(engine))
            seconds = time.monotonic() - started
            new = server.fake.calls[calls:] if server else []
        return {"reason": reason, "seconds": seconds, "calls": new, "prompts": len(PROMPTS)}
