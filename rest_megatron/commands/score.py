"""The `score` command: rewards of answers in a file, without a model."""

from typing import TextIO

from rest_megatron.commands.catalogue import Score
from rest_megatron.commands.rows import process, read_think_open
from rest_megatron.config.schema import Config
from rest_megatron.data.rows import BadRow, describe, field
from rest_megatron.grammar import GRAMMARS
from rest_megatron.reward.presets import build_reward


def main(config: Config, options: Score, stream: TextIO) -> None:
    """Rows {response, ground_truth} of options.input -> {score, format, correctness, parts, reason} in options.output.

    The reward is that of `reward.*` at that point of the run, without a judge. A row may hold `think_open`:
    true where the prompt has already opened the thought. A row without these strings, or with a ground truth that
    cannot be scored, is reported on `stream` and becomes {"error": ...} in the output.
    Raises DataError for a file that cannot be read or written or has no row that can be used, ConfigError for a reward
    that cannot be built.
    """
    step, progress = options.resolved(config.train.steps)
    reward, grammar = build_reward(config), GRAMMARS[config.data.answer_format]

    def convert(row: dict) -> dict:
        response, ground_truth = field(row, "response", str), field(row, "ground_truth", str)
        think_open = read_think_open(row, grammar)
        try:
            truth = reward.read(ground_truth)
        except ValueError as reason:
            raise BadRow(f"ground_truth {describe(ground_truth)}: {reason}") from reason
        # JSON may hold a lone surrogate, which is no UTF-8; what it becomes here is not valid in an answer either.
        answer = response.encode("utf-8", "surrogatepass")
        return reward.score(answer, truth, progress=progress, step=step, think_open=think_open).to_dict()

    process(options.input, options.output, stream, convert)
