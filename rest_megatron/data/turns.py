"""What a chat template writes between two turns of the assistant, as ids that are appended to those sampled.

Sampled ids are never decoded and tokenised again. Only what lies between an assistant's end-of-turn token and the
opening of its next turn is rendered, behind a fixed short dialogue, and tokenised by itself: right after a special
token, the tokens do not depend on what comes before.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import jinja2
from transformers import PreTrainedTokenizerBase

from rest_megatron.config.refuse import refuse
from rest_megatron.config.schema import Config
from rest_megatron.data.template import FIX, Message, check_template, render_text
from rest_megatron.data.tokens import stop_token_ids
from rest_megatron.errors import DataError

_ANSWER = "The tool knows."
_DIALOGUE: tuple[Message, ...] = (
    {"role": "system", "content": "You know the weather."},
    {"role": "user", "content": "How warm is it in Paris?"},
    {"role": "assistant", "content": _ANSWER},
)
_TOOL: tuple[Message, ...] = ({"role": "tool", "content": '{"celsius": 21}'},)
# Renderings of which two, one after the other, show the same time wherever a template writes one.
_TRIES = 2


@dataclass(frozen=True)
class Turns:
    """The template's way from one turn of the assistant to the next."""

    tokenizer: PreTrainedTokenizerBase
    end_of_turn: int
    """The token that ends an assistant's turn, which a sampled turn must end with to be answered."""

    def between(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the messages after an assistant's turn, and of the opening of its next one.

        Special tokens are the template's alone: where a message spells one, its content is tokenised as plain text.
        Raises DataError when the template refuses the messages, or rewrites them or the turns before.
        """
        text = self._after(messages)
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        spelled = {
            number: message["content"]
            for number, message in enumerate(messages)
            if any(token in message["content"] for token in special)
        }
        return self._plainly(messages, spelled, text) if spelled else self._encode(text)

    def _plainly(self, messages: Sequence[Message], contents: Mapping[int, str], text: str) -> list[int]:
        """The ids of `text`, the messages as rendered, with no special token in some messages' contents."""
        name = uuid4().hex  # no content holds it, and no id comes from it
        # White space around a content stays outside: templates strip it.
        places = {f"{name}-{number}-": content.strip() for number, content in contents.items()}
        marked = list(messages)
        for (number, content), (place, core) in zip(contents.items(), places.items(), strict=True):
            marked[number] = messages[number] | {"content": content.replace(core, place, 1)}
        pieces = re.split("|".join(f"({place})" for place in places), self._after(marked))
        pieces = [piece for piece in pieces if piece]
        if "".join(places.get(piece, piece) for piece in pieces) != text:
            raise DataError(f"the chat template changes the text of {messages}, said by rollout.tools")
        ids: list[int] = []
        for piece in pieces:
            ids += self._encode(places.get(piece, piece), split_special_tokens=piece in places)
        return ids

    def _after(self, messages: Sequence[Message]) -> str:
        """The messages as rendered behind the fixed dialogue."""
        for _ in range(_TRIES):
            prefix = self._prefix()
            try:
                whole = render_text(self.tokenizer, [*_DIALOGUE, *messages], opens=True)
            except jinja2.TemplateError as error:
                raise DataError(f"the chat template refuses {messages}, said by rollout.tools: {error}") from error
            if whole.startswith(prefix):
                return whole[len(prefix) :]
        raise DataError(f"the chat template rewrites earlier turns before {messages}, said by rollout.tools")

    def _prefix(self) -> str:
        """The fixed dialogue, up to the token that ends its assistant's turn; templates may write the time of day."""
        closed = render_text(self.tokenizer, _DIALOGUE, opens=False)
        stop = self.tokenizer.convert_ids_to_tokens(self.end_of_turn)
        return closed[: closed.rindex(_ANSWER) + len(_ANSWER) + len(stop)]

    def _encode(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split_special_tokens)

    def appends(self) -> bool:
        """Whether a tool's answer has the same ids by itself as in the whole dialogue."""
        prefix = self._prefix()
        apart = self._encode(prefix) + self.between(_TOOL)
        return apart == self._encode(prefix + self._after(_TOOL))


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
    closed = render_text(tokenizer, _DIALOGUE, opens=False)
    start = closed.rindex(_ANSWER) + len(_ANSWER)
    listed = stop_token_ids(Path(config.model.path), tokenizer)
    # The model's vocabulary may hold ids that the tokenizer has no token for.
    stops = {token: i for i in listed if isinstance(token := tokenizer.convert_ids_to_tokens(i), str)}
    found = max((stop for stop in stops if closed.startswith(stop, start)), key=len, default=None)
    if found is None:
        ends = f"it writes {closed[start:]!r} after an assistant's message, which begins with no stop token"
        refuse(
            config,
            "data.chat_template",
            f"{rule}: {ends} ({', '.join(stops)})",
            "Name the template's end-of-turn token in generation_config.json (eos_token_id), or take another template",
        )
    turns = Turns(tokenizer, stops[found])
    if not turns.appends():
        reason = f"the tokenizer joins {found} to the text after it, so turns cannot be tokenised one by one"
        refuse(config, "data.chat_template", f"{rule}: {reason}", "Take the model's own tokenizer.json")
    return turns
