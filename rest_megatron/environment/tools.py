"""The user's tools, which answer the assistant between its turns: the one environment that answers act on today.

    def respond(response: str, messages: list[dict], *, prompt: str) -> list[dict] | None: ...

response: the turn that has just ended, without its stop token. messages: what was said between the prompt and that
turn, {"role", "content"} each, the assistant's earlier turns among them. prompt: the prompt as the model reads it,
which tells one row from another. Returns the tools' messages, [{"role": "tool", "content": "21"}], or the user's, or
None to end the dialogue.

A function that keeps no state of its own but follows what was said gives the same dialogues in every run. Dialogues
are answered in several threads at once, each within rollout.tools_timeout. What the function gets wrong stops the run
with a DataError.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rest_megatron.config.schema import Config
from rest_megatron.data.rows import describe, lone_surrogate
from rest_megatron.data.template import Message
from rest_megatron.errors import DataError
from rest_megatron.utils.user_code import excerpt, load_function, say
from rest_megatron.utils.waiting import CHECK_SECONDS, no_stop

CALL = "function(response: str, messages: list[dict], *, prompt: str) -> list[dict] | None"
ROLES = ("tool", "user")
THREADS = 32


class Question(NamedTuple):
    """What the function is asked, see the top of this file."""

    response: str
    messages: Sequence[Message]
    prompt: str


@dataclass
class _Call:
    """One question on its way."""

    question: Question
    begun: threading.Event = field(default_factory=threading.Event)
    started: float = 0.0
    """By the monotonic clock, once begun."""
    answer: Future = field(default_factory=Future)


@dataclass(frozen=True)
class Tools:
    """A user's tools. name: how messages call them. seconds: the longest that they may take to answer a question."""

    function: Callable[..., Any]
    name: str
    seconds: float

    def answers(self, questions: Sequence[Question], check: Callable[[], None] = no_stop) -> list[list[Message] | None]:
        """The function's answer to each question, in their order.

        `check` is called now and then; after what it raises nothing more is asked. Raises DataError, that of the first
        question, when the function raises, returns anything but messages, or takes too long.
        """
        calls = [_Call(question) for question in questions]
        waiting = deque(calls)
        for _ in range(min(THREADS, len(calls))):
            # A daemon: one that is stuck must not keep the interpreter from ending.
            threading.Thread(target=self._work, args=[waiting], daemon=True).start()
        try:
            return [self._result(call, check) for call in calls]
        finally:
            waiting.clear()

    def _work(self, waiting: deque["_Call"]) -> None:
        """Answer calls until none waits."""
        while True:
            try:
                call = waiting.popleft()
            except IndexError:
                return
            call.started = time.monotonic()
            call.begun.set()
            try:
                call.answer.set_result(self._answer(call.question))
            except BaseException as error:
                call.answer.set_exception(error)

    def _result(self, call: "_Call", check: Callable[[], None]) -> list[Message] | None:
        # All calls before this one are done, so a thread is free for it.
        call.begun.wait()
        while True:
            check()
            left = call.started + self.seconds - time.monotonic()
            try:
                return call.answer.result(max(0.0, min(left, CHECK_SECONDS)))
            except TimeoutError:
                if left > CHECK_SECONDS:
                    continue
            late = f"took more than rollout.tools_timeout={self.seconds:g} seconds"
            raise DataError(f"{self.name} {late}, on {excerpt(call.question.response)}")

    def _answer(self, question: Question) -> list[Message] | None:
        response, messages, prompt = question
        try:
            # A copy: what the function does to its list must not change what was said.
            result = self.function(response, [dict(message) for message in messages], prompt=prompt)
        except (Exception, SystemExit) as error:
            raise DataError(f"{self.name} raised {say(error)}, on {excerpt(response)}") from error
        try:
            return None if result is None else _read_messages(result)
        except ValueError as error:
            raise DataError(f"{self.name} returned {error}, on {excerpt(response)}") from error


def load_tools(config: Config) -> Tools | None:
    """Those of rollout.tools, None without any. Raises ConfigError for a function that cannot be loaded or called."""
    name, where = config.rollout.tools, config.where("rollout.tools")
    if name is None:
        return None
    function = load_function("rollout.tools", name, where, CALL, "", [], prompt="")
    return Tools(function, f"rollout.tools={name}", config.rollout.tools_timeout)


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
        fault = lone_surrogate(message["content"])
        if fault:
            raise ValueError(f"content with {fault} in message {number}, must be valid Unicode")
    return [dict(message) for message in result]
