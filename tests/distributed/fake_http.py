"""The HTTP side of the fake vLLM server: a socket, and replies that may be errors, cut off or missing.

The fake itself is an object with uds, connections, stopped and answer(method, target, body).
"""

import json
import socket
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Died(Exception):
    """The process is gone."""


class Failed(Exception):
    """A reply with an error status."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


@dataclass
class Cut:
    """A reply of which only half is sent."""

    reply: object


class Listener(ThreadingHTTPServer):
    """Listens on the fake's socket, and knows every open connection."""

    daemon_threads = True

    def __init__(self, fake):
        self.fake = fake
        self.address_family = socket.AF_UNIX if fake.uds is not None else socket.AF_INET
        super().__init__(("127.0.0.1", 0) if fake.uds is None else str(fake.uds), Handler)

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request, client_address) -> None:
        """A client that has gone is no matter."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.fake.connections.add(self)

    def close_now(self) -> None:
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def do_GET(self) -> None:
        self._do("GET")

    def do_POST(self) -> None:
        self._do("POST")

    def _do(self, method: str) -> None:
        fake = self.server.fake
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.close_connection = True
        try:
            status, reply = 200, fake.answer(method, self.path, json.loads(raw or b"{}"))
        except Died:
            return
        except Failed as error:
            status, reply = error.status, {"error": {"message": str(error), "code": error.status}}
        if fake.stopped.is_set():
            return
        cut = isinstance(reply, Cut)
        content = b"" if reply is None else json.dumps(reply.reply if cut else reply).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *args) -> None:
        """Quiet."""
