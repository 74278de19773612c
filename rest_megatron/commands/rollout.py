"""The `rollout` command: answers to every prompt of data.train from the model as it is, scored, without training.

run.dir/rollout.jsonl has one row per answer, prompts in the order of their file, as `step.dump.answer_rows` gives
them; a killed run leaves the rows of the prompts it had finished. Rewards are those of a training step, a judge's
grade and the punishment of long answers included, at the point of the ramp where held-out answers are scored
(`evaluate.heldout.fixed_progress`). Draws depend on run.seed, rollout.prompts_per_step, rollout.group_size and
rollout.max_new_tokens, not on the layout.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rest_megatron.commands.inputs import read_prompts
from rest_megatron.config.schema import Config
from rest_megatron.data.tokenizer import read_tokenizer
from rest_megatron.distributed.launch import Launch
from rest_megatron.evaluate.heldout import fixed_progress
from rest_megatron.observe.rollouts import length_metrics
from rest_megatron.rollout.engine import number_requests
from rest_megatron.session import Session, open_session
from rest_megatron.step.collect import rollout_seed, score
from rest_megatron.step.dump import answer_rows, write_rows
from rest_megatron.step.score import Groups, reward_metrics
from rest_megatron.types import Prompt, Score
from rest_megatron.utils.text import text_table


def main(config: Config, launch: Launch) -> None:
    """Run the `rollout` command on this rank: write run.dir/rollout.jsonl and show what the answers are like."""
    tokenizer = read_tokenizer(config)
    prompts = read_prompts(config, tokenizer, config.data.train)
    with open_session(config, launch, tokenizer, total_optimizer_steps=1, prompts=prompts) as session:
        total = answer_all(session, prompts)
        if session.is_main:
            rows = [(name, f"{value:.4g}") for name, value in total.metrics().items()]
            session.progress.write(text_table((str(session.run_dir / "rollout.jsonl"), ""), rows))


@dataclass
class Tally:
    """What some answers are like."""

    scores: list[Score] = field(default_factory=list)
    lengths: dict[str, float] = field(default_factory=dict)
    """Sums over the answers of each of `length_metrics`."""
    seconds: float = 0.0
    """Spent sampling."""

    def add(self, groups: Groups, scores: Sequence[Sequence[Score]], seconds: float) -> dict[str, float]:
        """Take in the answers to some prompts; returns the metrics of these alone."""
        own = Tally([one for group in scores for one in group], {}, seconds)
        means = length_metrics([sample for group in groups for sample in group])
        own.lengths = {name: mean * len(own.scores) for name, mean in means.items()}
        self.scores += own.scores
        self.lengths = {name: self.lengths.get(name, 0.0) + value for name, value in own.lengths.items()}
        self.seconds += seconds
        return own.metrics()

    def metrics(self) -> dict[str, float]:
        """Their number, rewards, lengths and speed."""
        count = len(self.scores)
        metrics = {"rollout/answers": float(count)} | reward_metrics(self.scores)
        metrics |= {name: value / count for name, value in self.lengths.items()}
        return metrics | {"rollout/tokens_per_second": self.lengths["rollout/length"] / self.seconds}


def answer_all(session: Session, prompts: Sequence[Prompt]) -> Tally:
    """Answer the prompts, rollout.prompts_per_step at a time; rank 0 writes rows and metrics of each part. Collective.

    The same on every rank.
    """
    size, total = session.config.rollout.prompts_per_step, Tally()
    parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
    session.rollout.publish(session.actor.version)
    for number, part in enumerate(parts, start=1):
        started = time.perf_counter()
        groups, scores, seconds = answer(session, part, number)
        if session.is_main:
            with open(session.run_dir / "rollout.jsonl", "w" if number == 1 else "a", encoding="utf-8") as file:
                write_rows(file, answer_rows(part, groups, scores, session.token_table))
        metrics = total.add(groups, scores, seconds)
        metrics["time/step"] = time.perf_counter() - started
        session.metrics.log(number, metrics)
        session.progress.step(number, len(parts), metrics)
    return total


def answer(session: Session, prompts: Sequence[Prompt], number: int) -> tuple[Groups, list[list[Score]], float]:
    """Answers to one part of the prompts, their scores, and the seconds that sampling took."""
    config = session.config
    started = time.perf_counter()
    groups = session.rollout.generate(
        number_requests([prompt.token_ids for prompt in prompts], config.rollout.max_new_tokens),
        group_size=config.rollout.group_size,
        seed=rollout_seed(config.run.seed, number),
    )
    seconds = time.perf_counter() - started
    return groups, score(session, prompts, groups, fixed_progress(config.reward), config.train.steps), seconds
