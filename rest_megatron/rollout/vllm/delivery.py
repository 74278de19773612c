"""Rank 0's side of a weight update: the calls in their order, one retry, then one restart."""

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm.client import Client, RequestRefused
from rest_megatron.rollout.vllm.publisher import WeightFile
from rest_megatron.rollout.vllm.server import Server

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Delivery:
    """Gives files of weights to a server. seconds: the deadline of each call."""

    def __init__(self, server: Server, seconds: float) -> None:
        # Two runs that one server was given to both count from 0.
        self._run = secrets.token_hex(4)
        self._server = server
        self._seconds = seconds
        self._updating = False

    @property
    def client(self) -> Client:
        """Calls to the server where it listens now."""
        return Client(self._server.address)

    @property
    def can_sleep(self) -> bool:
        """Whether the server can give back the accelerator's memory."""
        return self._server.can_sleep

    def sleep(self) -> None:
        """Let the server drop its weights and caches, until the next delivery. Raises EngineError."""
        try:
            self.client.sleep(self._seconds)
        except EngineError as error:
            raise EngineError(f"{error.args[0]}{self.log_excerpt()}") from error

    def deliver(
        self, files: Sequence[WeightFile], version: int, sample: Callable[[Client], T], *, asleep: bool = False
    ) -> T:
        """Replace the server's weights and give what `sample` then gets from it. asleep: since `sleep`.

        After a failure everything is sent once more, before anything is sampled: an engine with half of an update
        dies when it samples. After the second the server is restarted, where we can. Raises EngineError after the last.
        """
        try:
            return self._send(files, version, sample, asleep)
        except EngineError as error:
            if isinstance(error, RequestRefused) and not self._updating:
                raise  # the update is complete; what was asked for then would be refused again
            logger.warning("version %d did not reach vLLM; all of it is sent again. %s", version, error)
        try:
            return self._send(files, version, sample, asleep)
        except EngineError as error:
            if not self._server.restartable:
                raise EngineError(
                    f"version {version} did not reach vLLM, twice. {error.args[0]}{self._left_behind()}"
                ) from error
            # With the log, since log_tail begins anew with a restart.
            logger.warning(
                "version %d did not reach vLLM again; the server is restarted. %s%s", version, error, self.log_excerpt()
            )
        self._server.restart()
        try:
            return self._send(files, version, sample, asleep=False)
        except EngineError as error:
            raise EngineError(
                f"version {version} did not reach vLLM, twice and after a restart. {error.args[0]}{self.log_excerpt()}"
            ) from error

    def _send(self, files: Sequence[WeightFile], version: int, sample: Callable[[Client], T], asleep: bool) -> T:
        client, seconds = self.client, self._seconds
        if asleep:
            client.wake_up("weights", seconds)
        self._updating = True
        client.pause(seconds)
        client.abandon_weight_update(seconds)
        client.start_weight_update(seconds)
        for file in files:
            client.update_weights({"path": file.path, "sha256": file.sha256}, seconds)
        client.require_loaded(seconds)
        client.finish_weight_update(self._name(version), seconds)
        client.require_loaded(seconds)
        if asleep:
            client.wake_up("kv_cache", seconds)
        client.resume(seconds)
        self._updating = False
        self.require_version(version)
        return sample(client)

    def require_version(self, version: int) -> None:
        """Raise EngineError unless the server says that it serves this run's `version`."""
        found, wanted = self.client.weight_version(self._seconds), self._name(version)
        if found != wanted:
            raise EngineError(
                f"vLLM at {self._server.address} serves weight version {found!r}, must be {wanted!r}: another run "
                "updates its weights, or it was started anew"
            )

    def log_excerpt(self) -> str:
        """The end of the server's log as the end of an error; "" where the log is another's."""
        tail = self._server.log_tail()
        return f"\n  The end of the server's log:\n{tail}" if tail else ""

    def _name(self, version: int) -> str:
        """What the server calls a version of this run."""
        return f"{version}-{self._run}"

    def _left_behind(self) -> str:
        if not self._updating:
            return ""
        return (
            f"\n  The server at {self._server.address} was not started by this run, so it is left paused, with "
            "half-loaded weights: restart it before anything else uses it"
        )
