"""The user's tools: what is no answer of theirs, what they raise, and how long they may take."""

import subprocess
import sys
import threading
import time

import pytest

from rest_megatron.environment.tools import THREADS, Question, Tools
from rest_megatron.errors import DataError

NAME = "rollout.tools=mine.py:f"
ASKED = r"on the response 'call' of 4 characters"


def tool(content):
    return [{"role": "tool", "content": content}]


def answers(respond, count=1, seconds=30.0):
    return Tools(respond, NAME, seconds).answers([Question("call", [], str(i)) for i in range(count)])


@pytest.mark.parametrize(
    "result, reason",
    [
        ("21", "str '21', must be a list of messages"),
        ({"role": "tool", "content": "21"}, "dict .*, must be a list of messages"),
        ([], "an empty list, must hold a message; None ends the dialogue"),
        (["21"], "str '21' as message 0, must be a dict of role and content"),
        ([*tool("1"), {"role": "tool"}], "dict .* as message 1, must be a dict of role and content"),
        ([{"role": "tool", "content": "1", "name": "f"}], "dict .* as message 0, must be a dict of role and content"),
        ([{"role": "assistant", "content": "1"}], "role 'assistant' in message 0, must be one of tool, user"),
        ([{"role": "tool", "content": 21}], "content int 21 in message 0, must be a string"),
        ([*tool("1"), *tool("ab\ud83d")], r"content with the lone surrogate U\+D83D at character 2 in message 1"),
    ],
)
def test_what_is_no_answer_of_tools_ends_the_run(result, reason):
    with pytest.raises(DataError, match=f"{NAME} returned {reason}.*{ASKED}"):
        answers(lambda *_, **__: result)


@pytest.mark.parametrize("error", [KeyError("Paris"), SystemExit(0)])
def test_an_exception_of_the_tools_names_the_response_and_the_place(error):
    def respond(response, messages, *, prompt):
        raise error

    with pytest.raises(DataError) as caught:
        answers(respond)
    assert f"{NAME} raised {error!r} at {__file__}:" in str(caught.value) and caught.value.__cause__ is error


def test_answers_come_in_the_order_of_the_questions():
    def respond(response, messages, *, prompt):
        time.sleep(0.002 * (int(prompt) % 3))
        return tool(prompt)

    count = 3 * THREADS
    assert answers(respond, count) == [tool(str(i)) for i in range(count)]


def test_tools_that_take_too_long_end_the_run_and_are_asked_nothing_more():
    asked, release = [], threading.Event()

    def respond(response, messages, *, prompt):
        asked.append(prompt)
        release.wait(30)

    started = time.perf_counter()
    with pytest.raises(DataError, match=rf"{NAME} took more than rollout.tools_timeout=0.2 seconds, {ASKED}"):
        answers(respond, 2 * THREADS, seconds=0.2)
    assert time.perf_counter() - started < 10
    release.set()
    time.sleep(0.1)
    assert len(asked) == THREADS


def test_each_turn_has_its_own_seconds_however_many_wait():
    assert answers(lambda *_, **__: time.sleep(0.15), 4 * THREADS, seconds=0.4) == [None] * 4 * THREADS


def test_stuck_tools_do_not_keep_the_interpreter_from_ending():
    code = (
        "import time\n"
        "from rest_megatron.environment.tools import Question, Tools\n"
        "Tools(lambda *_, **__: time.sleep(60), 'mine', 0.1).answers([Question('', [], '')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and "DataError: " in done.stderr
