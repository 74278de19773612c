"""Long-lived gloo worker processes, so that many layouts can be tested for the price of one import (`forks`).

`WorkerPool.run(function, world_size, *args)` calls `function(launch, *args)` on that many workers at once, each with
its own rank and a fresh rendezvous port, and returns their results in rank order. A worker that raises or hangs fails
the test with its traceback, and the next run starts fresh workers.
"""

import gc
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

from rest_megatron.distributed.launch import Launch, free_port
from tests.forks import CONTEXT


class WorkerPool:
    """Processes that wait for work on a pipe. context: how they are started."""

    def __init__(self, context: BaseContext = CONTEXT, timeout: float = 180.0):
        self.context, self.timeout = context, timeout
        self.workers: list[tuple[Any, Any]] = []

    def run(self, function: Callable, world_size: int, *args: Any) -> list[Any]:
        """Call `function(launch, *args)` on ranks 0 .. world_size - 1; results in rank order."""
        while len(self.workers) < world_size:
            self.workers.append(self._spawn())
        port = free_port()
        for rank, (_, pipe) in enumerate(self.workers[:world_size]):
            pipe.send((function, Launch(rank, world_size, rank, world_size, "127.0.0.1", port, "single"), args))
        results, failures = [], []
        for rank, (_, pipe) in enumerate(self.workers[:world_size]):
            if not pipe.poll(5.0 if failures else self.timeout):
                failures.append(f"rank {rank}: no answer")
                continue
            ok, value = pipe.recv()
            (results if ok else failures).append(value)
        if failures:
            self.close()
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        """Kill every worker."""
        for process, pipe in self.workers:
            pipe.close()
            process.kill()
            process.join()
        self.workers = []

    def _spawn(self):
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _serve(pipe) -> None:
    import torch
    from torch.utils._pytree import tree_map_only

    from tests.threads import limit_threads

    limit_threads()
    while True:
        try:
            function, launch, args = pipe.recv()
        except EOFError:
            return
        # What is there already, mostly modules, need not be searched when the case is cleaned up.
        gc.freeze()
        try:
            # A tensor on a device would die with this process.
            pipe.send((True, tree_map_only(torch.Tensor, torch.Tensor.cpu, function(launch, *args))))
        except BaseException:
            pipe.send((False, f"rank {launch.rank}:\n{traceback.format_exc()}"))
            return
        finally:
            _clean_up()


def _clean_up() -> None:
    """Leave nothing of a case behind: a DeepSpeed engine is kept alive by its own hooks, and its groups by it.

    Every group has threads that wake a hundred times a second, so a few dozen forgotten cases starve the machine.
    """
    from deepspeed import DeepSpeedEngine

    from rest_megatron.distributed.startup import shutdown

    engines = [thing for thing in gc.get_objects() if type(thing) is DeepSpeedEngine]
    while engines:
        engines.pop().destroy()
    shutdown()
    gc.collect()
