"""`train`: reinforcement learning with ResT token weights, from the newest checkpoint of run.dir on."""

from dataclasses import asdict

from rest_megatron.checkpoint.resume import RunIdentity, data_hash, write_finished
from rest_megatron.commands.inputs import read_prompts
from rest_megatron.config.check_rollout import without_engine
from rest_megatron.config.schema import Config
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.distributed.launch import Launch
from rest_megatron.observe.metrics import EVALUATIONS, read_rows
from rest_megatron.observe.report import final_table, write_report
from rest_megatron.saver import NoSaver, Saver
from rest_megatron.session import Session, open_session
from rest_megatron.state import RunState, new_state
from rest_megatron.step.replay import DumpReader, open_replay
from rest_megatron.step.update import planned_updates
from rest_megatron.train import KeptAnswers, train
from rest_megatron.types import Experience, Prompt

ENDINGS = {
    "off": "trained: the model is {0}/hf, the report {0}/report.html",
    "rollout_only": "nothing was trained: the answers are in {0}/rollouts, the report is {0}/report.html",
    "train_only": "trained on the answers of train.replay: the model is {0}/hf, the report {0}/report.html",
}
"""By train.debug, with run.dir in place of {0}."""


def main(config: Config, launch: Launch) -> None:
    """Run the command on this rank.

    With train.debug on there are no evaluations and no checkpoints, and nothing is exported where nothing was learned.
    """
    debug = config.train.debug
    config = without_engine(config) if debug == "train_only" else config
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    heldout = read_prompts(config, tokenizer, config.data.eval) if config.data.eval and debug == "off" else []
    replay = open_replay(config, prompts) if debug == "train_only" else None
    updates = config.train.steps * planned_updates(config)
    identity = RunIdentity("train", data_hash(asdict(prompt) for prompt in prompts)) if debug == "off" else None
    with open_session(config, launch, tokenizer, updates, prompts, identity) as session:
        state = new_state(config, len(prompts))

        def next_prompts(count: int) -> list[Prompt]:
            return [prompts[i] for i in state.cursor.next_batch(count)]

        if identity is None:
            train(
                session, state, next_prompts, _no_answers if replay is None else replay.experience, heldout, NoSaver()
            )
        else:
            saver = Saver(session, state, identity)
            kept = saver.restore(DumpReader(config, prompts, session.actor.policy.hf.vocab_size).experience)
            with saver.saving_when_stopped():
                train(session, state, next_prompts, _answers_to_next_step(state, kept), heldout, saver)
        if session.is_main:
            _finish(session, bool(heldout))


def _no_answers(step: int) -> None:
    """Every step's answers are still to be sampled."""


def _answers_to_next_step(state: RunState, experience: Experience | None) -> KeptAnswers:
    """Those that a stopped run had already scored."""
    kept = {} if experience is None else {state.step + 1: experience}
    return lambda step: kept.pop(step, None)


def _finish(session: Session, evaluated: bool) -> None:
    """On rank 0: write the run's report, note that it has finished, and show what it reached."""
    write_report(session.run_dir)
    write_finished(session.config, "train")  # last: from then on nothing of the run is done again
    if evaluated:
        evaluations = read_rows(session.run_dir / EVALUATIONS)
        session.progress.write(final_table(evaluations[0], evaluations[-1]))
    session.progress.write(ENDINGS[session.config.train.debug].format(session.run_dir))
