"""Everything a run is built from: this process's place, tokenizer, actor, engine and logs."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rest_megatron.actor.actor import Actor
from rest_megatron.checkpoint.resume import Resumed, RunIdentity, find_checkpoint, finished_steps
from rest_megatron.config import dump
from rest_megatron.config.schema import Config
from rest_megatron.data.template import read_template
from rest_megatron.data.tokens import stop_token_ids, token_bytes
from rest_megatron.distributed.launch import Launch
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.distributed.startup import choose_device, initialize, shutdown
from rest_megatron.distributed.watch import Watch
from rest_megatron.errors import CheckpointError, Preempted, Stopped
from rest_megatron.grammar import GRAMMARS, Grammar
from rest_megatron.model.huggingface import read_hf_config, weight_source
from rest_megatron.model.model import check_supported
from rest_megatron.observe.metrics import Metrics, NoMetrics, open_metrics
from rest_megatron.observe.progress import Progress, open_progress
from rest_megatron.reward.judge import Judge, build_judge
from rest_megatron.reward.presets import Reward, build_reward
from rest_megatron.rollout.build import build_engine
from rest_megatron.rollout.dialogue import open_dialogues
from rest_megatron.rollout.engine import RolloutEngine
from rest_megatron.rollout.vllm.server import open_server
from rest_megatron.types import Prompt
from rest_megatron.utils.lock import locked


@dataclass(frozen=True)
class Session:
    """One running job, as this rank sees it."""

    config: Config
    run_dir: Path
    parallel: Parallel
    token_table: list[bytes]
    chat_template: str | None
    """The one of data.chat_template; None: the model's own."""
    grammar: Grammar
    reward: Reward
    judge: Judge | None
    """On the rank that scores, when there is one."""
    actor: Actor
    rollout: RolloutEngine
    metrics: Metrics
    progress: Progress
    resumed: Resumed | None
    """The checkpoint that the run resumes from."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files of the run."""
        return self.parallel.rank == 0

    def export(self, name: str) -> None:
        """Write the policy as the Hugging Face directory run_dir/name. Collective."""
        self.actor.export(self.run_dir / name, self.chat_template)


@contextmanager
def open_session(
    config: Config,
    launch: Launch,
    tokenizer: PreTrainedTokenizerBase,
    total_optimizer_steps: int,
    prompts: Sequence[Prompt] = (),
    identity: RunIdentity | None = None,
) -> Iterator[Session]:
    """Start processes, logs, rollout server and model for a configuration that has been checked.

    `total_optimizer_steps` shapes the learning-rate schedule; `prompts`, needed with a rollout server, are some it will
    answer. identity: whose checkpoints are looked for; None: the command has none. Read and check all input before:
    what fails in here costs a job its start. Raises RestError; Finished when the run has finished; Preempted when it
    is to stop, or Stopped without checkpoints.
    """
    checkpoint, stacks = config.checkpoint, Path(config.run.dir) / "hang"
    watch = Watch(save_by=checkpoint.save_by, hang_timeout=config.run.hang_timeout, stacks=stacks, rank=launch.rank)
    try:
        with watch, ExitStack() as stack:
            # What takes long here has deadlines of its own.
            with watch.phase("start"), watch.patient():
                session = _start(config, launch, tokenizer, total_optimizer_steps, prompts, identity, watch, stack)
            yield session
            session.rollout.close()
    except Preempted as stop:
        if identity is None:
            raise Stopped(f"{stop.args[0]}: this command saves nothing; start it again in another run.dir") from stop
        raise
    # Not after an error: the ranks still need the group to agree on who reports it.
    shutdown()


def _start(
    config: Config,
    launch: Launch,
    tokenizer: PreTrainedTokenizerBase,
    total_optimizer_steps: int,
    prompts: Sequence[Prompt],
    identity: RunIdentity | None,
    watch: Watch,
    stack: ExitStack,
) -> Session:
    """Everything of a session, `stack` to end it; arguments as in `open_session`."""
    model_path, run_dir = Path(config.model.path), Path(config.run.dir)
    hf = read_hf_config(model_path)
    check_supported(hf)
    weights = weight_source(config.model, config.run.seed, hf)
    table = token_bytes(tokenizer, hf.vocab_size)
    reward = build_reward(config)
    named = config.data.chat_template
    template = None if named is None else read_template(named, config.where("data.chat_template"))
    parallel = initialize(
        launch, config.parallel, choose_device(config.run.device, launch), config.run.seed, watch=watch
    )
    progress = stack.enter_context(open_progress(launch.rank, config))
    parallel.only_main(lambda: stack.enter_context(locked(run_dir)))
    resumed = None if identity is None else find_checkpoint(config, identity, parallel, progress.write)
    metrics = _open_metrics(config, parallel, resumed, stack)
    require_shared(run_dir)
    # Before the model: a server that shares the actor's GPUs measures their free memory when it starts.
    server = stack.enter_context(open_server(config, run_dir, parallel))
    actor = Actor(config, hf, weights, parallel, total_optimizer_steps)
    engine = build_engine(config, actor, parallel, server, stop_token_ids(model_path, tokenizer), prompts)
    return Session(
        config=config,
        run_dir=run_dir,
        parallel=parallel,
        token_table=table,
        chat_template=template,
        grammar=GRAMMARS[config.data.answer_format],
        reward=reward,
        judge=parallel.only_main(lambda: build_judge(config.reward, os.environ)),
        actor=actor,
        rollout=open_dialogues(engine, config, parallel, tokenizer, table),
        metrics=metrics,
        progress=progress,
        resumed=resumed,
    )


def _open_metrics(config: Config, parallel: Parallel, resumed: Resumed | None, stack: ExitStack) -> Metrics:
    """This rank's logger, and config.yaml beside its files. Collective; what keeps rank 0 from it is raised on all."""
    run_dir, after, evaluated = Path(config.run.dir), None, None
    if resumed is not None and resumed.is_own:
        after = resumed.loop["step"]
        closed = resumed.loop["closed"] or finished_steps(config, resumed.loop["command"]) == after
        evaluated = after if closed else after - 1

    def open_here() -> Metrics:
        logger = stack.enter_context(open_metrics(parallel.rank, run_dir, config, after, evaluated))
        (run_dir / "config.yaml").write_text(dump(config))
        return logger

    return parallel.only_main(open_here) or NoMetrics()


def require_shared(run_dir: Path) -> None:
    """Raise CheckpointError on a node that does not see what rank 0 wrote: every pipeline stage exports there."""
    if not (run_dir / "config.yaml").exists():
        raise CheckpointError(
            f"run.dir={run_dir} on {platform.node()} lacks the config.yaml that rank 0 wrote; all nodes write to it. "
            "Put run.dir on a file system that all nodes share"
        )
