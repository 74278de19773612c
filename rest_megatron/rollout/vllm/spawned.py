"""A vLLM server that this process starts and ends. A keeper between the two ends it when this process cannot."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rest_megatron.errors import EngineError
from rest_megatron.rollout.vllm import keeper
from rest_megatron.rollout.vllm.client import Address, Client
from rest_megatron.rollout.vllm.command import server_command
from rest_megatron.utils.waiting import no_stop

SOCKET = "vllm.sock"
GRACE_SECONDS = 20.0
"""How long a server may take to end by itself."""
POLL_SECONDS = 0.2
HEALTH_SECONDS = 5.0
TAIL_LINES = 15
ERROR_LINES = 5
TAIL_BYTES = 1 << 20
LINE_CHARACTERS = 500
MAX_SOCKET_BYTES = 100
ERROR = re.compile(r"(Error|Exception|error): ")


class SpawnedServer:
    """Starts the server at once; `wait_ready` waits for it. It listens on a Unix domain socket of this user alone.

    Args:
        python: interpreter of the environment that holds vLLM.
        arguments: vLLM's, without where to listen.
        environment: the server's, whole.
        log: file that its output is appended to.
        start_timeout: seconds until it must answer.
        api_key: what it asks requests for; "" nothing.
    """

    restartable = True

    def __init__(
        self,
        python: str,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str],
        log: Path,
        start_timeout: float,
        api_key: str = "",
    ) -> None:
        self.can_sleep = bool(arguments.get("enable_sleep_mode"))
        self._environment = dict(environment)
        self._log = log
        self._start_timeout = start_timeout
        self._api_key = api_key
        self._python, self._arguments = os.path.abspath(python), dict(arguments)
        self._running = False
        self._start()

    def wait_ready(self, check: Callable[[], None] = no_stop) -> None:
        """Return when the server answers. Raises EngineError as soon as it has ended, or when its time is over."""
        client, waited = Client(self.address), 0.0
        while waited < self._start_timeout:
            check()
            code = self._keeper.poll()
            if code is not None:
                raise self._failure(f"ended with exit code {code} after {waited:.0f} s, before it answered")
            with contextlib.suppress(EngineError):
                client.health(min(HEALTH_SECONDS, self._start_timeout - waited))
                return
            time.sleep(POLL_SECONDS)
            waited = time.monotonic() - self._started
        raise self._failure(f"did not answer within rollout.start_timeout={self._start_timeout:g} s")

    def restart(self) -> None:
        """End the server and start another, at a new address. Raises EngineError when it does not get ready."""
        self.close()
        self._start()
        self.wait_ready()

    def log_tail(self) -> str:
        """The last lines since the start, and the last ones before them that name an error."""
        try:
            with open(self._log, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""  # asked for to explain an error, which must not be lost with the log
        lines = [line[:LINE_CHARACTERS] for line in text.splitlines()]
        earlier, last = lines[:-TAIL_LINES], lines[-TAIL_LINES:]
        named = [line for line in earlier if ERROR.search(line)][-ERROR_LINES:]
        return "\n".join([*named, *(["..."] if named else []), *last])

    def close(self, wait: bool = True) -> None:
        """End the server and remove its socket, within the sum of the keeper's deadlines. Its log remains.

        Without `wait` this returns at once: the keeper, which outlives this process, does it.
        """
        if not self._running:
            return
        self._running = False
        self._keeper.terminate()
        if wait:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._keeper.wait(GRACE_SECONDS + keeper.TRACKER_SECONDS + keeper.KILL_SECONDS + HEALTH_SECONDS)
            # Where the keeper was killed, it has not done so.
            shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        self._directory = _private_directory()
        self.address = Address("http://vllm", uds=self._directory / SOCKET, api_key=self._api_key)
        try:
            self._keeper = self._start_keeper(self._directory)
        except OSError as error:
            self._directory.rmdir()
            raise EngineError(f"the vLLM server cannot be started: {error} (its log: {self._log})") from error
        self._started, self._running = time.monotonic(), True

    def _start_keeper(self, directory: Path) -> subprocess.Popen[bytes]:
        command = server_command(self._python, {**self._arguments, "uds": self.address.uds})
        with open(self._log, "ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                # -I -S: of this interpreter the keeper needs the standard library, and nothing of the environment.
                [
                    *(sys.executable, "-I", "-S", keeper.__file__),
                    *(str(os.getpid()), str(GRACE_SECONDS), str(directory)),
                    *command,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def _failure(self, what: str) -> EngineError:
        return EngineError(f"the vLLM server {what}. The end of its log, {self._log}:\n{self.log_tail()}")


def _private_directory() -> Path:
    """For the socket: not the run's, which may be on a network and whose path may be too long for one."""
    directory = Path(tempfile.mkdtemp(prefix="rest_megatron-"))
    size = len(os.fsencode(directory / SOCKET))
    if size > MAX_SOCKET_BYTES:
        directory.rmdir()
        raise EngineError(
            f"{directory.parent} is too long a path for the vLLM server's socket in it: {size} bytes, at most "
            f"{MAX_SOCKET_BYTES}. Set TMPDIR to a shorter one"
        )
    return directory
