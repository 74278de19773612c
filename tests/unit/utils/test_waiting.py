"""Waits that are broken off: replies, grades and tools that are no longer wanted hold nobody up."""

import asyncio
import socket
import threading
import time

import pytest

from rest_megatron.environment.tools import THREADS, Question, Tools
from rest_megatron.errors import Preempted
from rest_megatron.reward.judge import Judge
from rest_megatron.rollout.vllm.client import Address, Call, Client
from rest_megatron.utils.waiting import gather
from tests.waiting import happens


class Stop:
    """A check that raises once `seconds` are over."""

    def __init__(self, seconds: float):
        self.at, self.calls = time.monotonic() + seconds, 0

    def __call__(self) -> None:
        self.calls += 1
        if time.monotonic() > self.at:
            raise Preempted("SIGUSR1")


async def after(seconds: float, value: object, ended: list) -> object:
    try:
        await asyncio.sleep(seconds)
        if isinstance(value, Exception):
            raise value
        return value
    finally:
        ended.append(value)


def test_results_come_in_order_and_the_check_is_asked_meanwhile(monkeypatch):
    monkeypatch.setattr("rest_megatron.utils.waiting.CHECK_SECONDS", 0.02)
    check, ended = Stop(60), []
    coroutines = (after(0.05 * (4 - i), i, ended) for i in range(4))
    assert asyncio.run(gather(coroutines, check)) == [0, 1, 2, 3]
    assert ended == [3, 2, 1, 0] and check.calls > 5
    assert asyncio.run(gather([], check)) == []


def test_the_first_error_cancels_the_rest():
    ended, started = [], time.monotonic()
    with pytest.raises(KeyError):
        asyncio.run(gather([after(20, 1, ended), after(0.05, KeyError(), ended), after(20, 2, ended)]))
    assert len(ended) == 3 and time.monotonic() - started < 10


@pytest.fixture
def silent():
    """The port of a server that takes requests and never answers, and the connections that were closed to it."""
    closed = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def hold(connection):
            with connection:
                while connection.recv(65536):
                    pass
                closed.append(connection)

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=hold, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], closed
        listener.shutdown(socket.SHUT_RDWR)


def requests(port: int, check) -> None:
    Client(Address(f"http://127.0.0.1:{port}")).send([Call("POST", "/v1/completions", {})] * 5, 60, check)


def grades(port: int, check) -> None:
    Judge(f"http://127.0.0.1:{port}/v1", "critic", timeout=60, concurrency=5).grades([((), "a")] * 20, check)


@pytest.mark.parametrize("ask", [requests, grades])
def test_a_stop_takes_back_what_is_asked(silent, ask):
    port, closed = silent
    started = time.monotonic()
    with pytest.raises(Preempted):
        ask(port, Stop(0.7))
    assert 0.7 < time.monotonic() - started < 10
    assert happens(lambda: len(closed) == 5), "the server sees that nobody waits any more"


def test_a_stop_does_not_wait_for_tools_and_asks_them_nothing_more():
    asked, release = [], threading.Event()

    def respond(response, messages, *, prompt):
        asked.append(prompt)
        release.wait(20)

    started = time.monotonic()
    with pytest.raises(Preempted):
        Tools(respond, "mine", 60).answers([Question("", [], str(i)) for i in range(2 * THREADS)], Stop(0.7))
    assert 0.7 < time.monotonic() - started < 10
    release.set()
    time.sleep(0.1)
    assert len(asked) == THREADS
