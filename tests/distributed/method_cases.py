"""What the gloo workers run to test the method on the actor: algorithms, token weights, gradient variance."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.comparison import compare_gradients
from rest_megatron.config import load
from rest_megatron.config.method import AlgorithmConfig
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.grammar import TOOLRL
from rest_megatron.method.weights import WeightState
from rest_megatron.step.batch import deal_batch
from rest_megatron.step.weigh import describe, spread
from rest_megatron.types import Sample
from tests.distributed.cases import TOKENS_ALONE, Layout, make_config, named, share, start
from tests.tiny import VOCAB, Answers

# A vocabulary in which an answer's bytes are its ids.
TABLE = [bytes([i]) if i < 256 else b"" for i in range(VOCAB)]
TEXTS = (
    b'<think> look it up </think>\n<tool_call>\n{"name": "f", "parameters": {"a": "b", "n": 12}}\n</tool_call>',
    b'<think> two </think>\n<tool_call>\n{"name": "g", "parameters": {}}\n{"name": "f", "parameters": {"a": 1}}\n',
    b"<think> no need </think>\n<response> hello there </response>",
    b"no tags at all",
    b'<think> cut short </think>\n<tool_call>\n{"name": "ge',
    b"<think> thinking without an end",
)
ACCURACY = (0.5, 0.4, 0.3)


def tool_samples() -> list[Sample]:
    """Two answers to each of three prompts, as bytes; those that are whole end in a stop token."""
    samples = []
    for number, text in enumerate(TEXTS):
        ids = (*text, 300) if text.endswith(b">") else tuple(text)
        finish = "stop" if text.endswith(b">") else "length"
        samples.append(Sample((256 + number // 2, 7, 9), ids, (-1.0,) * len(ids), finish, 0))
    return samples


def updated(launch: Launch, model: Path, layout: Layout, answers: Answers, algorithm: dict) -> dict:
    """One update with some `algorithm`, and the reference log-probs before and after it."""
    config = make_config(model, layout)
    actor, parallel = start(launch, replace(config, algorithm=replace(config.algorithm, **algorithm)))
    ours, mine = share(answers, parallel)
    before = actor.log_probs(ours.trajectories)
    reference = actor.ref_log_probs(ours.trajectories)
    done = actor.update(ours.trajectories, ours.streams._replace(ref_log_probs=reference))
    after = actor.ref_log_probs(ours.trajectories)
    return {
        "sequences": mine,
        "hidden_norm_squared": before.hidden_norm_squared,
        "log_probs": before.log_probs,
        "update_log_probs": done.log_probs,
        "metrics": done.metrics,
        "reference_stays": None if reference is None else torch.equal(reference, after),
        "moved": float((actor.log_probs(ours.trajectories).log_probs - before.log_probs).abs().max()),
    }


def measured(launch: Launch, model: Path, layout: Layout, answers: Answers, groups: Sequence[int], probe: bool) -> dict:
    """`compare_gradients`, if asked, and the weights after an update that follows.

    The answers' loss weights against equal ones, with their advantages as rewards.
    """
    actor, parallel = start(launch, make_config(model, layout))
    ours, mine = share(answers, parallel)
    numbers = {}
    if probe:
        own = [groups[i] for i in mine]
        others = ours.streams._replace(loss_weights=torch.full_like(ours.loss_weights, 1 / len(answers.old_log_probs)))
        arms = (ours.streams, others)
        numbers = compare_gradients(actor, ours.trajectories, own, max(groups) + 1, arms, ours.advantages).to_dict()
    metrics = actor.update(*ours).metrics
    return {"comparison": numbers, "metrics": metrics, "weights": named(actor, parallel, lambda p: p.data.clone())}


def weighed(
    launch: Launch, model: Path, layout: Layout, presets: Mapping[str, Sequence[str]], steps: int
) -> dict[str, dict]:
    """By preset, which is a list of overrides, what `_weighed` tells."""
    actor, parallel = start(launch, make_config(model, layout))
    return {name: _weighed(actor, parallel, overrides, steps) for name, overrides in presets.items()}


def _weighed(actor: Actor, parallel: Parallel, overrides: Sequence[str], steps: int) -> dict:
    """Token weights of the tool answers after `steps` steps, by answer, their metrics and their state as JSON."""
    settings = load((), overrides).weights
    state = WeightState()
    for step in range(steps):
        weights, batch = _weigh(actor, parallel, settings, state, step, steps)
        state = WeightState.from_dict(weights.state.to_dict())
    tokens = weights.tokens.split(batch.lengths)
    stats = actor.log_probs(batch.trajectories)
    return {
        "weights": dict(zip(batch.sample_index, tokens, strict=True)),
        "metrics": weights.metrics(),
        "state": state.to_dict(),
        "entropy": stats.entropy,
        "collision": stats.collision,
    }


def _weigh(actor: Actor, parallel: Parallel, settings, state: WeightState, step: int, steps: int):
    batch = deal_batch(
        tool_samples(),
        torch.zeros(len(TEXTS)),
        TABLE,
        TOOLRL,
        group_size=2,
        borders=[0, 2, 6],
        learns=[True] * len(TEXTS),
        cost=TOKENS_ALONE,
        dp_rank=parallel.dp_rank,
        dp_size=parallel.dp_size,
        device=parallel.device,
    )
    stats = actor.log_probs(batch.trajectories)
    tokens, state = spread(
        batch,
        stats,
        state,
        progress=step / steps,
        step=step,
        accuracy=ACCURACY,
        settings=settings,
        token_table=TABLE,
        dp_group=parallel.dp_group,
    )
    return describe(batch, tokens, stats, state, AlgorithmConfig(), parallel.dp_group), batch
