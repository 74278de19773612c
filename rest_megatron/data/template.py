"""Chat templates: ours, one from a file, and what a template does to dialogues of several turns.

A trainer that samples turn after turn needs two things of a template: a longer dialogue only appends to a shorter one,
so the ids of a turn stay those that were sampled, and earlier thoughts stay in it. Qwen3's own has neither.
"""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jinja2

from rest_megatron.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEEP_THINKING = "keep_thinking"
FIX = "set data.chat_template=keep_thinking"

Message = dict[str, str]

_PROBE: tuple[Message, ...] = (
    {"role": "system", "content": "You know the weather."},
    {"role": "user", "content": "How warm is it in Paris?"},
    {
        "role": "assistant",
        "content": "<think>\nThe tool knows.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    },
    {"role": "tool", "content": '{"celsius": 21}'},
    {"role": "assistant", "content": "<think> Now I know. </think>\n<response> 21 degrees. </response>"},
    {"role": "user", "content": "And in Rome?"},
)


def read_template(name: str, where: str) -> str:
    """The template of data.chat_template: ours for "keep_thinking", else the text of the Jinja file `name`.

    where: where the key was set, for the message. Raises ConfigError when it cannot be read or is no Jinja.
    """
    resource = files("rest_megatron.data") / "templates" / f"{KEEP_THINKING}.jinja"
    try:
        template = (resource if name == KEEP_THINKING else Path(name)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template={name} cannot be read: {error}   ({where})\n"
            f"  It is the path of a Jinja file, or {KEEP_THINKING}"
        ) from error
    if not template.strip():
        raise ConfigError(f"data.chat_template={name} is empty   ({where})\n  It must hold a Jinja template")
    return template


def render_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[dict] | None = None,
    *,
    opens: bool,
) -> str:
    """The messages as the tokenizer's template writes them; `opens`: and the opening of the assistant's turn.

    tools: those the template announces. Raises jinja2.TemplateError when it refuses them.
    """
    return cast(str, _apply(tokenizer, messages, tools, opens, tokenize=False))


def render_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[dict] | None = None,
    *,
    opens: bool,
) -> list[int]:
    """The token ids of `render_text`."""
    return cast(list[int], _apply(tokenizer, messages, tools, opens, tokenize=True))


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[dict] | None,
    opens: bool,
    tokenize: bool,
) -> Any:
    announced: list[Any] | None = list(tools) if tools else None
    return tokenizer.apply_chat_template(
        list(messages), tools=announced, add_generation_prompt=opens, tokenize=tokenize, return_dict=False
    )


def check_template(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What the tokenizer's template does wrong with a dialogue of several turns, one sentence each; [] when nothing.

    Checked wherever a turn begins or ends: the ids so far begin the ids of the longer dialogue. In the whole dialogue:
    each thought is there, and the assistant's texts are as they were.
    """
    try:
        renderings = list(_prefixes(tokenizer))
        whole = render_text(tokenizer, _PROBE, opens=True)
    except jinja2.TemplateError as error:
        return [f"it refuses a dialogue with a system message, calls and tool results: {error}; {FIX}"]
    findings = []
    for (count, shorter), (longer_count, longer) in pairwise(renderings):
        if longer[: len(shorter)] != shorter:
            difference = _first_difference(shorter, longer)
            findings.append(
                f"with {longer_count} messages it rewrites what it rendered of {count}, from token {difference} on "
                f"({tokenizer.decode(shorter[difference : difference + 8])!r} became "
                f"{tokenizer.decode(longer[difference : difference + 8])!r}); {FIX}"
            )
    dropped = dropped_thought(_PROBE, whole)
    if dropped is not None:
        findings.append(f"it drops the thoughts of earlier turns, that of message {dropped} first; {FIX}")
    elif any(message["content"] not in whole for message in _PROBE if message["role"] == "assistant"):
        findings.append(f"it changes the text of earlier turns; {FIX}")
    return findings


def dropped_thought(messages: Sequence[Message], rendered: str) -> int | None:
    """The number of the first assistant message whose thought is not in the rendered text; None when all are.

    White space around a thought may change. Thoughts are looked for in their order, so equal ones count one by one.
    """
    position = 0
    for number, message in enumerate(messages):
        thought = _thought(message)
        if not thought:
            continue
        found = rendered.find(thought, position)
        if found < 0:
            return number
        position = found + len(thought)
    return None


def has_thoughts(messages: Sequence[Message]) -> bool:
    """Whether any assistant message holds a thought that a template could drop."""
    return any(_thought(message) for message in messages)


def _thought(message: Message) -> str:
    if message["role"] != "assistant":
        return ""
    thought, closed, _ = message["content"].partition("</think>")
    _, opened, thought = thought.partition("<think>")
    return thought.strip() if opened and closed else ""


def _prefixes(tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[int, list[int]]]:
    """(messages, their ids) wherever the assistant's turn opens or has just ended."""
    for count in range(2, len(_PROBE) + 1):
        opens = _PROBE[count - 1]["role"] != "assistant"
        yield count, render_ids(tokenizer, _PROBE[:count], opens=opens)


def _first_difference(shorter: list[int], longer: list[int]) -> int:
    pairs = zip(shorter, longer, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(shorter), len(longer)))
