"""Demonstrations for the supervised warm start: rows of `prompt` messages and a `response` text.

`tools` is optional, as in `prompts`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rest_megatron.config.schema import Overlong
from rest_megatron.data.chat import read_messages, read_tools, render, require_chat_template
from rest_megatron.data.lengths import fits, without_dropped
from rest_megatron.data.rows import BadRow, parse_rows, text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Demonstration:
    """One prompt and the answer to imitate; response_ids end with the tokenizer's end-of-turn (eos) token."""

    index: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def load_demonstrations(
    path: str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    overlong: Overlong = "error",
) -> list[Demonstration]:
    """Read and tokenise every demonstration of a .parquet, .jsonl or .json file.

    overlong: as in `load_prompts`, for the prompt and for the response with its eos token alike.
    Raises DataError for an unusable file or any bad row, a response whose text spells the eos token among them, and
    ConfigError for a tokenizer without a chat template or eos token.
    """
    require_chat_template(tokenizer)

    def parse(index: int, row: dict) -> Demonstration | None:
        prompt_ids = render(read_messages(row), tokenizer, read_tools(row))
        response_ids = _encode_response(text(row, "response"), tokenizer)
        prompt_fits = fits("prompt", prompt_ids, max_prompt_tokens, "data.max_prompt_tokens", overlong)
        response_fits = fits("response", response_ids, max_response_tokens, "rollout.max_new_tokens", overlong)
        return Demonstration(index, prompt_ids, response_ids) if prompt_fits and response_fits else None

    rows = parse_rows(path, ("prompt", "response"), parse, optional=("tools",))
    limits = f"data.max_prompt_tokens={max_prompt_tokens} or rollout.max_new_tokens={max_response_tokens}"
    return without_dropped(rows, path, limits)


def _encode_response(response: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    token_ids = tokenizer.encode(response, add_special_tokens=False)
    if tokenizer.eos_token_id in token_ids:
        raise BadRow(
            f"field 'response' spells the end-of-turn token {tokenizer.eos_token!r}, which is added after it; "
            "leave it out"
        )
    return (*token_ids, tokenizer.eos_token_id)
