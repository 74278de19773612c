"""HTTP to a vLLM server: every call has a deadline, and what the server says about its errors reaches the user."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rest_megatron.config.redact import redact
from rest_megatron.errors import EngineError
from rest_megatron.utils.waiting import gather, no_stop

MAX_CONTROL_BYTES = 16 << 20  # /server_info holds vLLM's whole configuration
MAX_ERROR_BYTES = 64 << 10
MAX_ERROR_TEXT = 2000
MAX_CONNECTIONS = 256


@dataclass(frozen=True)
class Address:
    """Where a server listens. uds: its Unix domain socket; `url` then only fills in the requests' host."""

    url: str
    uds: Path | None = None
    api_key: str = field(default="", repr=False)
    """Sent as a bearer token when not empty."""

    def __str__(self) -> str:
        return redact(self.url) if self.uds is None else f"unix:{self.uds}"


class RequestRefused(EngineError):
    """The server answered with a status from 400 to 499: the same request would be refused again."""


@dataclass(frozen=True)
class Call:
    """One HTTP request. body: sent as JSON when not None. max_bytes: of the reply, beyond which it is not read."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, str] | None = None
    max_bytes: int = MAX_CONTROL_BYTES

    def __str__(self) -> str:
        return f"{self.method} {httpx.URL(self.path, params=self.query)}"


class Client:
    """Calls to one server. `seconds` is always the deadline of the whole call, connecting included.

    Every method raises EngineError that names the call, the seconds, the status and the server's own words;
    RequestRefused for a status from 400 to 499.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    def health(self, seconds: float) -> None:
        """Return when the server and its engine are well."""
        self._call(Call("GET", "/health"), seconds)

    def pause(self, seconds: float) -> None:
        """Stop sampling once the answers in flight are complete, and forget every cached prefix."""
        self._call(Call("POST", "/pause", query={"mode": "wait", "clear_cache": "true"}), seconds)

    def resume(self, seconds: float) -> None:
        """Sample again."""
        self._call(Call("POST", "/resume"), seconds)

    def abandon_weight_update(self, seconds: float) -> None:
        """Forget an update that was begun and never finished, if there is one; it would not begin another."""
        self._call_workers("abandon_weight_update", seconds)

    def start_weight_update(self, seconds: float) -> None:
        """Begin an update; until it is finished the server holds no usable weights."""
        self._call(Call("POST", "/start_weight_update"), seconds)

    def update_weights(self, update_info: dict[str, Any], seconds: float) -> None:
        """Load one part of the weights. update_info: what the server's weight transfer backend understands."""
        self._call(Call("POST", "/update_weights", {"update_info": update_info}), seconds)

    def require_loaded(self, seconds: float) -> None:
        """Raise EngineError when a worker could not take over a part of the update that was begun last."""
        failures = [text for text in self._call_workers("weight_update_failure", seconds) if text is not None]
        if failures:
            raise EngineError(f"vLLM at {self.address} could not take over the weights: {_shown(str(failures[0]))}")

    def finish_weight_update(self, version: str, seconds: float) -> None:
        """End an update: all parts have been loaded. `version` is what `weight_version` gives from now on."""
        self._call(Call("POST", "/finish_weight_update", {"weight_version": version}), seconds)

    def weight_version(self, seconds: float) -> str | None:
        """The version of the last finished update; what the server was started with has a name of its own or none."""
        return self._field(Call("GET", "/weight_info"), "weight_version", str | None, seconds)

    def sleep(self, seconds: float) -> None:
        """Drop weights and caches once the answers in flight are complete (level 2)."""
        self._call(Call("POST", "/sleep", query={"level": "2", "mode": "wait"}), seconds)

    def wake_up(self, tag: str, seconds: float) -> None:
        """Allocate again what sleep dropped, without its contents. tag: "weights" or "kv_cache"."""
        self._call(Call("POST", "/wake_up", query={"tags": tag}), seconds)

    def server_info(self, seconds: float) -> dict[str, Any]:
        """vLLM's own configuration under "vllm_config", as JSON values."""
        return self._value(Call("GET", "/server_info", query={"config_format": "json"}), dict, seconds)

    def send(self, calls: Sequence[Call], seconds: float, check: Callable[[], None] = no_stop) -> list[Any]:
        """The JSON reply to each call, all made at once; the EngineError in place of a reply that failed.

        `check` is called now and then. What it raises takes back the calls under way, which the server then ends.
        """
        return asyncio.run(self._send(calls, seconds, check))

    def _call(self, call: Call, seconds: float) -> Any:
        (reply,) = self.send([call], seconds)
        if isinstance(reply, EngineError):
            raise reply
        return reply

    def _call_workers(self, method: str, seconds: float) -> list[Any]:
        """Call a method of our extension of vLLM's workers; what each gives."""
        return self._field(Call("POST", "/collective_rpc", {"method": method}), "results", list, seconds)

    def _value(self, call: Call, kind: Any, seconds: float) -> Any:
        value = self._call(call, seconds)
        if not isinstance(value, kind):
            raise EngineError(
                f"vLLM at {self.address}: {call} gave {_shown(repr(value))}, which is not a vLLM server's JSON"
            )
        return value

    def _field(self, call: Call, name: str, kind: Any, seconds: float) -> Any:
        value = self._value(call, dict, seconds)
        if name not in value or not isinstance(value[name], kind):
            raise EngineError(f"vLLM at {self.address}: {call} gave {_shown(repr(value))} without a proper {name!r}")
        return value[name]

    async def _send(self, calls: Sequence[Call], seconds: float, check: Callable[[], None]) -> list[Any]:
        deadline = asyncio.get_running_loop().time() + seconds
        uds = None if self.address.uds is None else str(self.address.uds)
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS)
        headers = {"accept-encoding": "identity"}
        if self.address.api_key:
            headers["authorization"] = f"Bearer {self.address.api_key}"
        # Reading the system's certificates takes longer than most calls; plain HTTP needs none.
        verify = self.address.url.startswith("https:")
        transport = httpx.AsyncHTTPTransport(uds=uds, limits=limits, trust_env=False, verify=verify)
        async with httpx.AsyncClient(transport=transport, headers=headers, timeout=None, trust_env=False) as http:
            return await gather((self._one(http, call, deadline, seconds) for call in calls), check)

    async def _one(self, http: httpx.AsyncClient, call: Call, deadline: float, seconds: float) -> Any:
        """The reply, or the EngineError."""
        start = time.monotonic()
        where = f"vLLM at {self.address}: {call}"
        try:
            async with asyncio.timeout_at(deadline):
                status, body = await self._exchange(http, call)
        except TimeoutError:
            return EngineError(f"{where}: no whole reply within {seconds:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            passed = time.monotonic() - start
            return EngineError(f"{where} failed after {passed:.1f} s: {type(error).__name__}: {_shown(str(error))}")
        passed = time.monotonic() - start
        if not 200 <= status < 300:
            kind = RequestRefused if 400 <= status < 500 else EngineError
            return kind(f"{where} gave HTTP status {status} after {passed:.1f} s: {error_text(body)}")
        if len(body) > call.max_bytes:
            return EngineError(f"{where}: the reply is longer than {call.max_bytes} bytes; it is not read")
        try:
            return json.loads(body) if body else None
        except (ValueError, RecursionError):
            return EngineError(f"{where}: the reply of {len(body)} bytes is not JSON: {_shown(_text(body))}")

    async def _exchange(self, http: httpx.AsyncClient, call: Call) -> tuple[int, bytes]:
        """Status and body, the body no longer than one chunk beyond its limit."""
        url = f"{self.address.url.rstrip('/')}{call.path}"
        async with http.stream(call.method, url, params=call.query, json=call.body) as response:
            limit = call.max_bytes if response.is_success else MAX_ERROR_BYTES
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > limit:
                    break
            return response.status_code, bytes(body)


def error_text(body: bytes) -> str:
    """What a server's error reply says, on one line: {"error": {"message"}}, {"error"}, {"detail"}, or the text."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = _text(body)
    for key in ("error", "detail", "message"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return _shown(said if isinstance(said, str) else _text(body)) or "(no text)"


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _shown(text: str) -> str:
    """`text` as a message may show it: control characters out, white space as single blanks, at most 2,000 long."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_ERROR_TEXT])
    line = " ".join(printable.split())
    return line if len(line) <= MAX_ERROR_TEXT else f"{line[:MAX_ERROR_TEXT]}..."
