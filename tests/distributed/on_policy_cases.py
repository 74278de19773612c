"""What the gloo workers run to test an update whose old log-probs are its own."""

from dataclasses import replace
from pathlib import Path

from deepspeed.utils import safe_get_full_grad

from rest_megatron.distributed.launch import Launch
from tests.distributed.cases import Layout, make_config, named, share, start
from tests.tiny import Answers


def updated_on_policy(launch: Launch, model: Path, layout: Layout, answers: Answers, algorithm: dict) -> dict:
    """Gradient, metrics and statistics; the answers' old log-probs are the engine's. No weight changes."""
    config = make_config(model, layout)
    actor, parallel = start(launch, replace(config, algorithm=replace(config.algorithm, **algorithm)))
    ours, mine = share(answers, parallel)
    gradients = {}

    def keep_gradient(loss):
        actor.zero.reduce()
        gradients.update(named(actor, parallel, safe_get_full_grad))
        return 1.0, 0.0

    actor.zero.step = keep_gradient
    metrics, stats = actor.update_on_policy(*ours)
    statistics = {name: getattr(stats, name) for name in ("log_probs", "entropy", "collision")}
    return {"sequences": mine, "gradients": gradients, "metrics": metrics, **statistics}
