"""Supervised warm start: the same actor, layout and optimizer on demonstrations."""

import time
from collections.abc import Sequence

from rest_megatron.actor.dealing import CostModel, Work, deal, imbalance
from rest_megatron.checkpoint.resume import EXPORT, RunIdentity, data_hash, write_finished
from rest_megatron.commands.inputs import read_demonstrations
from rest_megatron.config.check_rollout import without_engine
from rest_megatron.config.schema import Config
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.distributed.launch import Launch
from rest_megatron.saver import Saver
from rest_megatron.session import Session, open_session
from rest_megatron.state import RunState, new_state
from rest_megatron.step.nonfinite import count_skipped
from rest_megatron.types import Trajectory


def main(config: Config, launch: Launch) -> None:
    """Run the `sft` command on this rank, from the newest checkpoint of run.dir on: train on sft.data, export to hf."""
    tokenizer = read_tokenizer(config)
    trajectories = [Trajectory(d.prompt_ids, d.response_ids) for d in read_demonstrations(config, tokenizer)]
    identity = RunIdentity("sft", data_hash(trajectories))
    with open_session(without_engine(config), launch, tokenizer, config.sft.steps, identity=identity) as session:
        state = new_state(config, len(trajectories))
        saver = Saver(session, state, identity)
        saver.restore()
        with saver.saving_when_stopped():
            while state.step < config.sft.steps:
                train_step(session, state, trajectories, saver)
            session.export(EXPORT)
        if session.is_main:
            write_finished(config, "sft")
            session.progress.write(f"trained: the model is {session.run_dir}/hf")


def train_step(session: Session, state: RunState, trajectories: Sequence[Trajectory], saver: Saver) -> None:
    """The next demonstrations, one optimizer step, its metrics, and a checkpoint when one is due."""
    config, started = session.config, time.perf_counter()
    chosen = [trajectories[i] for i in state.cursor.next_batch(config.sft.batch_size)]
    works, cost = [Work.of(t) for t in chosen], CostModel.of(session.actor.policy.hf, config)
    hands = deal(works, session.parallel.dp_size, cost)
    own = [chosen[i] for i in hands[session.parallel.dp_rank]]
    with session.parallel.watch.phase("update"):
        metrics = session.actor.supervised_step(own, sum(t.num_targets for t in chosen))
    state.step += 1
    count_skipped(session, state, state.step, metrics, own)
    metrics["load/imbalance"] = imbalance(works, [hands], cost)
    metrics |= {"time/step": time.perf_counter() - started, "time/checkpoint": saver.take_seconds()}
    session.metrics.log(state.step, metrics)
    session.progress.step(state.step, config.sft.steps, metrics)
    saver.mark()
    session.parallel.poll()
    saver.save_if_due()
