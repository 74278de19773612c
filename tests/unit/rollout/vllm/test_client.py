"""Calls to a vLLM server: deadlines that hold whatever the server does, and errors in the server's own words."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import MAX_ERROR_TEXT, Address, Call, Client, RequestRefused, error_text


def reply(content, status: str = "200 OK") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def listening(*chunks: bytes, pause: float = 0.0, uds=None, hold: bool = False):
    """A server that sends the chunks to whoever connects; gives its Address and the requests it read."""
    listener = socket.socket(socket.AF_UNIX if uds else socket.AF_INET)
    listener.bind(str(uds) if uds else ("127.0.0.1", 0))
    listener.listen()
    requests, ended = [], threading.Event()

    def serve(connection) -> None:
        with connection:
            data = connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while length and len(body) < int(length[0].split(b":")[1]):
                body += connection.recv(65536)
            requests.append((head.decode(), body))
            try:
                for chunk in chunks:
                    connection.sendall(chunk)
                    ended.wait(pause)
            except OSError:
                return
            if hold:
                ended.wait(20)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    url = "http://localhost" if uds else f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Address(url, uds), requests
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


CALLS = [
    (lambda c: c.health(5), b"", "GET /health", None),
    (lambda c: c.pause(5), {}, "POST /pause?mode=wait&clear_cache=true", None),
    (lambda c: c.resume(5), {}, "POST /resume", None),
    (
        lambda c: c.abandon_weight_update(5),
        {"results": [None]},
        "POST /collective_rpc",
        {"method": "abandon_weight_update"},
    ),
    (
        lambda c: c.require_loaded(5),
        {"results": [None, None]},
        "POST /collective_rpc",
        {"method": "weight_update_failure"},
    ),
    (lambda c: c.start_weight_update(5), {}, "POST /start_weight_update", None),
    (lambda c: c.update_weights({"path": "/x"}, 5), {}, "POST /update_weights", {"update_info": {"path": "/x"}}),
    (lambda c: c.finish_weight_update("7-a", 5), {}, "POST /finish_weight_update", {"weight_version": "7-a"}),
    (lambda c: c.weight_version(5), {"weight_version": "7"}, "GET /weight_info", "7"),
    (lambda c: c.weight_version(5), {"weight_version": None}, "GET /weight_info", None),
    (lambda c: c.sleep(5), {}, "POST /sleep?level=2&mode=wait", None),
    (lambda c: c.wake_up("kv_cache", 5), {}, "POST /wake_up?tags=kv_cache", None),
    (lambda c: c.server_info(5), {"vllm_config": {}}, "GET /server_info?config_format=json", {"vllm_config": {}}),
]


@pytest.mark.parametrize("call, answer, target, value", CALLS, ids=[case[2] for case in CALLS])
def test_calls_are_those_of_vllm(call, answer, target, value):
    with listening(reply(answer)) as (address, requests):
        got = call(Client(address))
    head, body = requests[0]
    assert head.startswith(f"{target} HTTP/1.1")
    sent = json.loads(body) if body else None
    assert value in (got, sent)


@pytest.mark.parametrize("over_socket", [False, True])
def test_a_server_is_reached_over_tcp_and_over_a_socket(tmp_path, over_socket, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    uds = tmp_path / "s" if over_socket else None
    with listening(reply({"weight_version": "7"}), uds=uds) as (address, requests):
        assert Client(address).weight_version(5) == "7"
        assert "authorization" not in requests[0][0].lower()
        secret = Address(address.url, address.uds, "sk-secret")
        Client(secret).weight_version(5)
        assert "authorization: Bearer sk-secret" in requests[1][0].replace("Authorization", "authorization")
    assert "sk-secret" not in repr(secret) + str(secret)


HOSTILE = {
    "silence": dict(chunks=[b""], hold=True),
    "headers that trickle": dict(chunks=[b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 200], pause=0.1),
    "a body that trickles": dict(chunks=[b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n", *[b" "] * 200], pause=0.1),
    "a body that stops": dict(chunks=[b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{"], hold=True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_deadline_is_the_whole_calls(name):
    case = dict(HOSTILE[name])
    with listening(*case.pop("chunks"), **case) as (address, _):
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"POST /resume: no whole reply within 0.5 s"):
            Client(address).resume(0.5)
        assert time.monotonic() - started < 8


BROKEN = {
    "closed at once": ([b""], "RemoteProtocolError"),
    "closed in the middle": ([b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{"], "RemoteProtocolError"),
    "no HTTP": ([b"SSH-2.0-OpenSSH\r\n\r\n"], "RemoteProtocolError"),
    "no JSON": ([reply(b"<html>\x1b[2Jhello")], r"not JSON: <html> \[2Jhello"),
    "deep JSON": ([reply(b"[" * 200_000)], "not JSON"),
    "another page": ([reply(b"", "307 Temporary Redirect")], "HTTP status 307"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reply_that_is_none_is_an_error(name):
    chunks, text = BROKEN[name]
    with listening(*chunks) as (address, _):
        with pytest.raises(EngineError, match=text) as raised:
            Client(address).weight_version(5)
    assert "GET /weight_info" in str(raised.value) and not isinstance(raised.value, RequestRefused)


def test_a_failure_of_any_worker_is_told_in_its_own_words():
    with listening(reply({"results": [None, "RuntimeError: weights /shm/a:\nSHA-256 1, expected 2"]})) as (address, _):
        with pytest.raises(EngineError, match=r"over the weights: RuntimeError: weights /shm/a: SHA-256 1, expected 2"):
            Client(address).require_loaded(5)


@pytest.mark.parametrize("answer", [[], {}, {"weight_version": 7}, None, "text"])
def test_a_reply_of_another_shape_is_an_error(answer):
    with listening(reply(answer)) as (address, _):
        with pytest.raises(EngineError, match="/weight_info gave"):
            Client(address).weight_version(5)


def test_nobody_listening_is_an_error_that_names_the_address(tmp_path):
    with pytest.raises(EngineError, match=r"vLLM at unix:.*/none: GET /health failed after 0.0 s: ConnectError"):
        Client(Address("http://localhost", tmp_path / "none")).health(5)
    with pytest.raises(EngineError, match=r"vLLM at http://\*\*\*@127.0.0.1:1: GET /health failed"):
        Client(Address("http://user:password@127.0.0.1:1")).health(5)


TEXTS = {
    b'{"error": {"message": "tensor on meta", "code": 500}}': "tensor on meta",
    b'{"error": "Failed to pause"}': "Failed to pause",
    b'{"detail": "Not Found"}': "Not Found",
    b'{"detail": [{"loc": ["body"]}]}': '{"detail": [{"loc": ["body"]}]}',
    b'{"message": "hm"}': "hm",
    b"Internal Server Error": "Internal Server Error",
    b"": "(no text)",
    b"\xff\x1b[31mred\x1b[0m\r\n\tx\x00y": "\ufffd [31mred [0m x y",
    b'{"error": {"message": "two\\nlines\\u202e"}}': "two lines",
    b"[" * 5000: "[" * MAX_ERROR_TEXT + "...",
}


@pytest.mark.parametrize("body, text", TEXTS.items(), ids=range(len(TEXTS)))
def test_the_servers_own_words_are_found(body, text):
    assert error_text(body) == text


@pytest.mark.parametrize("status, refused", [("400 Bad Request", True), ("404 X", True), ("500 X", False)])
def test_an_error_status_brings_the_servers_words(status, refused):
    body = json.dumps({"error": {"message": "x" * 100_000}}).encode()
    with listening(reply(body, status)) as (address, _):
        with pytest.raises(EngineError, match=rf"gave HTTP status {status[:3]} after \d\.\d s: ") as raised:
            Client(address).start_weight_update(5)
    assert isinstance(raised.value, RequestRefused) is refused
    assert MAX_ERROR_TEXT < len(str(raised.value)) < MAX_ERROR_TEXT + 200
    assert raised.value.exit_code == 5


def test_a_reply_that_is_too_long_is_not_read():
    with listening(reply(b'"' + b"x" * 10_000 + b'"')) as (address, _):
        small, large = Client(address).send([Call("GET", "/a", max_bytes=1000), Call("GET", "/b", max_bytes=20_000)], 5)
    assert isinstance(small, EngineError) and "longer than 1000 bytes" in str(small)
    assert large == "x" * 10_000


def test_requests_are_sent_at_once_and_each_has_its_own_outcome():
    with listening(b"", reply({"a": 1}), pause=0.4) as (address, requests):
        started = time.monotonic()
        replies = Client(address).send([Call("POST", "/v1/completions", {"seed": i}) for i in range(20)], 5)
        assert time.monotonic() - started < 6
    assert replies == [{"a": 1}] * 20
    assert sorted(json.loads(body)["seed"] for _, body in requests) == list(range(20))
