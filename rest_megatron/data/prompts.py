"""Prompts in the rlla schema: chat messages and the ground truth that scores the answers.

A row holds `prompt` (list of {role, content}) and `reward_model` ({ground_truth, ...}). `tools` is optional: a list in
OpenAI's form, or its JSON, for the chat template to announce; without it the messages name the tools. Other columns
are not read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rest_megatron.config.schema import Overlong
from rest_megatron.data.chat import read_messages, read_tools, render, require_chat_template
from rest_megatron.data.lengths import fits, without_dropped
from rest_megatron.data.rows import BadRow, describe, field, parse_rows, text
from rest_megatron.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_prompts(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_tokens: int,
    overlong: Overlong = "error",
    validate: Callable[[str], object] | None = None,
) -> list[Prompt]:
    """Read and tokenise every prompt of a .parquet, .jsonl or .json file.

    overlong: "error" counts a prompt of more than max_prompt_tokens as a bad row, "drop" leaves it out and logs how
    many. validate: called with each ground truth, raises ValueError with the reason when it cannot be scored.
    Raises DataError for an unusable file or any bad row, ConfigError for a tokenizer without a chat template.
    """
    require_chat_template(tokenizer)

    def parse(index: int, row: dict) -> Prompt | None:
        messages = read_messages(row)
        ground_truth = _read_ground_truth(row, validate)
        token_ids = render(messages, tokenizer, read_tools(row))
        if not fits("prompt", token_ids, max_prompt_tokens, "data.max_prompt_tokens", overlong):
            return None
        return Prompt(index, messages, ground_truth, token_ids)

    rows = parse_rows(path, ("prompt", "reward_model"), parse, optional=("tools",))
    return without_dropped(rows, path, f"data.max_prompt_tokens={max_prompt_tokens}")


def _read_ground_truth(row: dict, validate: Callable[[str], object] | None) -> str:
    ground_truth = text(field(row, "reward_model", dict), "ground_truth")
    if validate is not None:
        try:
            validate(ground_truth)
        except ValueError as reason:
            raise BadRow(f"reward_model.ground_truth {describe(ground_truth)}: {reason}") from reason
    return ground_truth
