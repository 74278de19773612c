"""Everything a run is built from: this process's place, tokenizer, actor, engine and logs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from rest_megatron.actor.actor import Actor
from rest_megatron.actor.parallel import Parallel, choose_device, initialize, shutdown
from rest_megatron.config import dump
from rest_megatron.config.schema import Config
from rest_megatron.launch import detect
from rest_megatron.observe.metrics import MetricsLogger, open_metrics
from rest_megatron.observe.progress import ProgressLine, open_progress
from rest_megatron.rollout.sampler import Sampler
from rest_megatron.tokens import token_bytes


@dataclass(frozen=True)
class Session:
    """One running job, as this rank sees it."""

    config: Config
    run_dir: Path
    parallel: Parallel
    tokenizer: PreTrainedTokenizerBase
    token_table: list[bytes]
    actor: Actor
    rollout: Sampler
    metrics: MetricsLogger
    progress: ProgressLine

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files of the run."""
        return self.parallel.rank == 0


def stop_token_ids(model_path: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end an answer: the tokenizer's end-of-turn token and those of generation_config.json."""
    ids = {tokenizer.eos_token_id}
    if (model_path / "generation_config.json").exists():
        listed = GenerationConfig.from_pretrained(model_path).eos_token_id
        ids.update([listed] if isinstance(listed, int) else listed or [])
    return sorted(ids)


@contextmanager
def open_session(config: Config, tokenizer: PreTrainedTokenizerBase, total_optimizer_steps: int) -> Iterator[Session]:
    """Start processes, model and logs for a configuration that has been checked.

    `total_optimizer_steps` shapes the learning-rate schedule. Read and check all input before: what fails in here
    costs a job its start.
    """
    launch = detect(os.environ)
    model_path = Path(config.model.path)
    table = token_bytes(tokenizer, AutoConfig.from_pretrained(model_path).vocab_size)
    device = choose_device(config.run.device, launch.local_rank)
    parallel = initialize(launch, config.parallel, device, config.run.seed)
    run_dir = Path(config.run.dir)
    if parallel.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump(config))
    actor = Actor(config, parallel, total_optimizer_steps)
    rollout = Sampler(actor.policy, parallel, config.rollout, stop_token_ids(model_path, tokenizer))
    with open_metrics(parallel.rank, run_dir, config) as metrics, open_progress(parallel.rank, config) as progress:
        yield Session(config, run_dir, parallel, tokenizer, table, actor, rollout, metrics, progress)
    # Not after an error: the ranks still need the group to agree on who reports it.
    shutdown()
