"""Chat messages and tools: read from a row, rendered to token ids by the tokenizer's chat template."""

import json
from typing import TYPE_CHECKING

import jinja2

from rest_megatron.data.rows import BadRow, describe, field, text
from rest_megatron.data.template import FIX, dropped_thought, has_thoughts, render_ids, render_text
from rest_megatron.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")


def require_chat_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise ConfigError unless the tokenizer can render messages and knows its end-of-turn token."""
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no chat template, so messages cannot become tokens; "
            "put the model's chat_template.jinja beside its tokenizer.json, or take the instruction-tuned model"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer in {tokenizer.name_or_path!r} has no eos_token, so no answer can end; "
            "name the end-of-turn token as eos_token in its tokenizer_config.json"
        )


def read_messages(row: dict) -> tuple[dict[str, str], ...]:
    """Return the field `prompt` as ({"role", "content"}, ...), fields taken by name.

    Raises BadRow for an empty list, an unknown role, a blank content (a tool may return nothing), a field that would
    be ignored, or a last message by the assistant, which leaves nothing to answer.
    """
    messages = field(row, "prompt", list)
    if not messages:
        raise BadRow("field 'prompt' is an empty list, must hold at least one message")
    read = tuple(_read_message(number, message) for number, message in enumerate(messages))
    if read[-1]["role"] == "assistant":
        raise BadRow("the last message of 'prompt' is the assistant's, must be one to answer")
    return read


def _read_message(number: int, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise BadRow(f"prompt[{number}] is {describe(message)}, must be an object with role and content")
    try:
        role = text(message, "role")
        content = text(message, "content") if role != "tool" or message.get("content") != "" else ""
    except BadRow as fault:
        raise BadRow(f"prompt[{number}]: {fault}") from None
    if role not in ROLES:
        raise BadRow(f"prompt[{number}] has role {role!r}, must be one of {', '.join(ROLES)}")
    ignored = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if ignored:
        raise BadRow(f"prompt[{number}] has the field {ignored[0]!r}; a message holds role and content only")
    return {"role": role, "content": content}


def read_tools(row: dict) -> tuple[dict, ...] | None:
    """Return the optional field `tools`, a list of tools in OpenAI's form or its JSON; None when there is none.

    Raises BadRow for anything else.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRow(f"field 'tools' is not valid JSON: {error}") from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"field 'tools' is {describe(tools)}, must be a list of objects, or its JSON")
    return tuple(tools) or None


def render(
    messages: tuple[dict[str, str], ...], tokenizer: "PreTrainedTokenizerBase", tools: tuple[dict, ...] | None = None
) -> tuple[int, ...]:
    """Return the token ids of the messages and of the opening of the assistant's turn.

    tools: those the template announces. The template's own defaults hold, so a model that thinks keeps thinking.
    Raises BadRow when the template refuses the messages, or drops a thought of an earlier turn.
    """
    try:
        if has_thoughts(messages):
            dropped = dropped_thought(messages, render_text(tokenizer, messages, tools, opens=True))
            if dropped is not None:
                raise BadRow(f"the chat template drops the thought of prompt[{dropped}]; {FIX}")
        return tuple(render_ids(tokenizer, messages, tools, opens=True))
    except jinja2.TemplateError as error:
        raise BadRow(f"the chat template refuses the messages: {error}") from error
