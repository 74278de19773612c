"""What a chat template writes between two turns of the assistant, as ids that are appended to those sampled.

Sampled ids are never decoded and tokenised again. Only what lies between an assistant's end-of-turn token and the
opening of its next turn is rendered, behind a fixed short dialogue, and tokenised by itself: right after a special
token, the tokens do not depend on what comes before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerBase

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.data.template import FIX, Message, check_template
from rest_megatron.errors import DataError
from rest_megatron.tokens import stop_token_ids

_ANSWER = "The tool knows."
_DIALOGUE: tuple[Message, ...] = (
    {"role": "system", "content": "You know the weather."},
    {"role": "user", "content": "How warm is it in Paris?"},
    {"role": "assistant", "content": _ANSWER},
)
_TOOL: tuple[Message, ...] = ({"role": "tool", "content": '{"celsius": 21}'},)


@dataclass(frozen=True)
class Turns:
    """The template's way from one turn of the assistant to the next."""

    tokenizer: PreTrainedTokenizerBase
    prefix: str
    """The fixed dialogue, up to the token that ends its assistant's turn."""
    end_of_turn: int
    """That token, which a sampled turn must end with to be answered."""

    def between(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the messages after an assistant's turn, and of the opening of its next one.

        Raises DataError when the template refuses them, or rewrites the turns before.
        """
        return self.tokenizer.encode(self._after(messages), add_special_tokens=False)

    def _after(self, messages: Sequence[Message]) -> str:
        try:
            whole = _render(self.tokenizer, [*_DIALOGUE, *messages], opens=True)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses {messages}, said by rollout.tools: {error}") from error
        if not whole.startswith(self.prefix):
            raise DataError(f"the chat template rewrites earlier turns before {messages}, said by rollout.tools")
        return whole[len(self.prefix) :]

    def appends(self) -> bool:
        """Whether a tool's answer has the same ids by itself as in the whole dialogue."""
        whole = self.prefix + self._after(_TOOL)
        encode = self.tokenizer.encode
        apart = encode(self.prefix, add_special_tokens=False) + self.between(_TOOL)
        return apart == encode(whole, add_special_tokens=False)


def read_turns(config: Config, tokenizer: PreTrainedTokenizerBase) -> Turns:
    """The template's turns, for rollout.max_turns > 1.

    Raises ConfigError for a template in which a longer dialogue does not append to a shorter one, that drops thoughts,
    or that ends the assistant's turn with anything but a stop token.
    """
    rule = f"cannot hold a dialogue of rollout.max_turns={config.rollout.max_turns}"
    findings = check_template(tokenizer)
    if findings:
        reasons = "; ".join(finding.removesuffix(f"; {FIX}") for finding in findings)
        refuse(config, "data.chat_template", f"{rule}: {reasons}", FIX.capitalize())
    closed = _render(tokenizer, _DIALOGUE, opens=False)
    start = closed.rindex(_ANSWER) + len(_ANSWER)
    stops = {tokenizer.convert_ids_to_tokens(i): i for i in stop_token_ids(Path(config.model.path), tokenizer)}
    found = max((stop for stop in stops if closed.startswith(stop, start)), key=len, default=None)
    if found is None:
        ends = f"it writes {closed[start:]!r} after an assistant's message, which begins with no stop token"
        refuse(
            config,
            "data.chat_template",
            f"{rule}: {ends} ({', '.join(stops)})",
            "Name the template's end-of-turn token in generation_config.json (eos_token_id), or take another template",
        )
    turns = Turns(tokenizer, closed[: start + len(found)], stops[found])
    if not turns.appends():
        reason = f"the tokenizer joins {found} to the text after it, so turns cannot be tokenised one by one"
        refuse(config, "data.chat_template", f"{rule}: {reason}", "Take the model's own tokenizer.json")
    return turns


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, opens: bool) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opens)
