"""The user's tools, which answer the assistant between its turns.

    def respond(response: str, messages: list[dict], *, prompt: str) -> list[dict] | None: ...

response: the turn that has just ended, without its stop token. messages: what was said between the prompt and that
turn, {"role", "content"} each, the assistant's earlier turns among them. prompt: the prompt as the model reads it,
which tells one row from another. Returns the tools' messages, [{"role": "tool", "content": "21"}], or the user's, or
None to end the dialogue.

A function that keeps no state of its own but follows what was said gives the same dialogues in every run. Dialogues
are answered in several threads at once. What the function gets wrong stops the run with a DataError.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from rest_megatron.config.schema import Config
from rest_megatron.data.rows import describe
from rest_megatron.data.template import Message
from rest_megatron.errors import DataError
from rest_megatron.user_code import excerpt, load_function, say

CALL = "function(response: str, messages: list[dict], *, prompt: str) -> list[dict] | None"
ROLES = ("tool", "user")
THREADS = 32


class Question(NamedTuple):
    """What the function is asked, see the top of this file."""

    response: str
    messages: Sequence[Message]
    prompt: str


@dataclass(frozen=True)
class Tools:
    """A user's tools. name: how messages call them."""

    function: Callable[..., Any]
    name: str

    def answers(self, questions: Sequence[Question]) -> list[list[Message] | None]:
        """The function's answer to each question, in their order.

        Raises DataError, that of the first question, when it raises or returns anything but messages.
        """
        if not questions:
            return []
        with ThreadPoolExecutor(min(THREADS, len(questions))) as threads:
            return list(threads.map(self._answer, questions))

    def _answer(self, question: Question) -> list[Message] | None:
        response, messages, prompt = question
        try:
            # A copy: what the function does to its list must not change what was said.
            result = self.function(response, [dict(message) for message in messages], prompt=prompt)
        except Exception as error:
            raise DataError(f"{self.name} raised {say(error)}, on {excerpt(response)}") from error
        try:
            return None if result is None else _read_messages(result)
        except ValueError as error:
            raise DataError(f"{self.name} returned {error}, on {excerpt(response)}") from error


def load_tools(config: Config) -> Tools:
    """Those of rollout.tools. Raises ConfigError when the function cannot be loaded, or called as it must be."""
    name, where = config.rollout.tools, config.where("rollout.tools")
    return Tools(load_function("rollout.tools", name, where, CALL, "", [], prompt=""), f"rollout.tools={name}")


def _read_messages(result: object) -> list[Message]:
    """Raises ValueError, which says what is wrong with the result."""
    if not isinstance(result, list):
        raise ValueError(f"{describe(result)}, must be a list of messages, or None to end the dialogue")
    if not result:
        raise ValueError("an empty list, must hold a message; None ends the dialogue")
    for number, message in enumerate(result):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise ValueError(f"{describe(message)} as message {number}, must be a dict of role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"role {message['role']!r} in message {number}, must be one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"content {describe(message['content'])} in message {number}, must be a string")
    return [dict(message) for message in result]
