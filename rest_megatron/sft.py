"""Supervised warm start: the same actor, layout and optimizer on demonstrations."""

import time

from rest_megatron.actor.microbatch import Trajectory, deal
from rest_megatron.config.no_engine import without_engine
from rest_megatron.config.schema import Config
from rest_megatron.data.cursor import PromptCursor
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.launch import Launch
from rest_megatron.reading import read_demonstrations
from rest_megatron.session import Session, open_session


def main(config: Config, launch: Launch) -> None:
    """Run the `sft` command on this rank: train on sft.data, export to run.dir/hf."""
    tokenizer = read_tokenizer(config)
    trajectories = [Trajectory(d.prompt_ids, d.response_ids) for d in read_demonstrations(config, tokenizer)]
    with open_session(without_engine(config), launch, tokenizer, config.sft.steps) as session:
        cursor = PromptCursor(len(trajectories), config.run.seed)
        for step in range(config.sft.steps):
            started = time.perf_counter()
            chosen = [trajectories[i] for i in cursor.next_batch(config.sft.batch_size)]
            metrics = supervised_step(session, chosen)
            metrics["time/step"] = time.perf_counter() - started
            session.metrics.log(step + 1, metrics)
            session.progress.step(step + 1, config.sft.steps, metrics)
        session.export("hf")


def supervised_step(session: Session, chosen: list[Trajectory]) -> dict[str, float]:
    """One optimizer step on the global batch `chosen`, dealt over the data-parallel ranks."""
    mine = deal([t.length for t in chosen], session.parallel.dp_size)[session.parallel.dp_rank]
    num_tokens = sum(t.num_targets for t in chosen)
    return session.actor.supervised_step([chosen[i] for i in mine], num_tokens)
