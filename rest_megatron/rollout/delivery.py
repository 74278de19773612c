"""Rank 0's side of a weight update: the calls in their order, one retry, then one restart."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from rest_megatron.errors import EngineError
from rest_megatron.rollout.client import Client, RequestRefused
from rest_megatron.rollout.server import Server
from rest_megatron.rollout.sync import WeightFile

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Delivery:
    """Gives files of weights to a server.

    asleep: whether the server has dropped its weights, until the next delivery. seconds: the deadline of each call.
    """

    def __init__(self, server: Server, seconds: float) -> None:
        self.asleep = False
        self._server = server
        self._seconds = seconds
        self._updating = False

    @property
    def client(self) -> Client:
        """Calls to the server where it listens now."""
        return Client(self._server.address)

    def sleep(self) -> None:
        """Let the server drop its weights and caches. Raises EngineError."""
        self.client.sleep(self._seconds)
        self.asleep = True

    def deliver(self, files: Sequence[WeightFile], version: int, sample: Callable[[Client], T]) -> T:
        """Replace the server's weights and give what `sample` then gets from it.

        After a failure everything is sent once more, before anything is sampled: an engine with half of an update
        dies when it samples. After the second the server is restarted, where we can. Raises EngineError after the last.
        """
        try:
            return self._send(files, version, sample)
        except EngineError as error:
            if isinstance(error, RequestRefused) and not self._updating:
                raise  # the update is complete; what was asked for then would be refused again
            logger.warning("version %d did not reach vLLM; all of it is sent again. %s", version, error)
        try:
            return self._send(files, version, sample)
        except EngineError as error:
            if not self._server.restartable:
                raise EngineError(
                    f"version {version} did not reach vLLM, twice. {error.args[0]}{self._left_behind()}"
                ) from error
            logger.warning("version %d did not reach vLLM again; the server is restarted. %s", version, error)
        self._server.restart()
        self.asleep = False
        try:
            return self._send(files, version, sample)
        except EngineError as error:
            raise EngineError(
                f"version {version} did not reach vLLM, twice and after a restart. {error.args[0]}{self._log()}"
            ) from error

    def _send(self, files: Sequence[WeightFile], version: int, sample: Callable[[Client], T]) -> T:
        client, seconds = self.client, self._seconds
        if self.asleep:
            client.wake_up("weights", seconds)
        self._updating = True
        client.pause(seconds)
        client.start_weight_update(seconds)
        for file in files:
            client.update_weights({"path": file.path, "sha256": file.sha256}, seconds)
        client.finish_weight_update(version, seconds)
        if self.asleep:
            client.wake_up("kv_cache", seconds)
        client.resume(seconds)
        self._updating = False
        require_version(client, version, seconds)
        sampled = sample(client)
        self.asleep = False
        return sampled

    def _left_behind(self) -> str:
        if not self._updating:
            return ""
        return (
            f"\n  The server at {self._server.address} was not started by this run, so it is left paused, with "
            "half-loaded weights: restart it before anything else uses it"
        )

    def _log(self) -> str:
        tail = self._server.log_tail()
        return f"\n  The end of the server's log:\n{tail}" if tail else ""


def require_version(client: Client, version: int, seconds: float) -> None:
    """Raise EngineError unless the server says that it serves `version`."""
    found = client.weight_version(seconds)
    if found != str(version):
        raise EngineError(
            f"vLLM at {client.address} serves weight version {found!r}, must be {version}: something else updates its "
            "weights, or it was started anew"
        )
