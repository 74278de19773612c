"""The vLLM server of a run: started by it (`spawned`), or an operator's that it attaches to (`attached`)."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from rest_megatron.config.check import read_model_config
from rest_megatron.config.schema import Config
from rest_megatron.distributed.parallel import Parallel
from rest_megatron.rollout.vllm.attached import AttachedServer
from rest_megatron.rollout.vllm.client import Address
from rest_megatron.rollout.vllm.command import API_KEY, server_arguments, server_environment
from rest_megatron.rollout.vllm.spawned import SpawnedServer
from rest_megatron.utils.waiting import no_stop


class Server(Protocol):
    """Rank 0's handle on a server. Every method raises EngineError with the server's own words."""

    address: Address
    can_sleep: bool
    """Whether it can give back the accelerator's memory (vLLM's enable_sleep_mode)."""
    restartable: bool

    def wait_ready(self, check: Callable[[], None] = no_stop) -> None:
        """Return when it answers, and as this run needs it. `check` is called now and then."""

    def restart(self) -> None:
        """End it and start it anew, ready, without the actor's weights. Only where it is `restartable`."""

    def log_tail(self) -> str:
        """The end of its log, with the lines above that name an error; "" where the log is another's."""

    def close(self, wait: bool = True) -> None:
        """End it, where this run has started it; without `wait` it ends by itself, soon. May be called again."""


@contextmanager
def open_server(config: Config, run_dir: Path, parallel: Parallel) -> Iterator[Server | None]:
    """The server of this run, ready, on rank 0; None on all other ranks, and where the run needs none. Collective.

    Raises EngineError on all ranks for a server that does not start, or is not what this run needs. After an error
    within, nobody waits until it has ended: the other ranks give rank 0 little time to report the error.
    """
    with ExitStack() as stack:
        server = None
        if config.rollout.engine == "vllm":
            server = parallel.only_main(lambda: stack.enter_context(_ready_server(config, run_dir, parallel)))
        yield server


@contextmanager
def _ready_server(config: Config, run_dir: Path, parallel: Parallel) -> Iterator[Server]:
    server = _server(config, run_dir, on_cpu=parallel.device.type == "cpu")
    try:
        server.wait_ready(parallel.watch.check)
        yield server
    except BaseException:
        server.close(wait=False)
        raise
    server.close()


def _server(config: Config, run_dir: Path, on_cpu: bool) -> Server:
    rollout, api_key = config.rollout, os.environ.get(API_KEY, "")
    if rollout.vllm_url is not None:
        return AttachedServer(Address(rollout.vllm_url, api_key=api_key), config)
    if rollout.vllm_python is None:
        raise ValueError("rollout.engine=vllm needs rollout.vllm_python or rollout.vllm_url")
    return SpawnedServer(
        rollout.vllm_python,
        server_arguments(config, read_model_config(config), on_cpu),
        server_environment(config, os.environ, on_cpu),
        run_dir / "vllm.log",
        rollout.start_timeout,
        api_key,
    )
