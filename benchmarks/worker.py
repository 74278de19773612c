"""A fresh process per contestant: its memory is its own, and a crash takes nothing else along."""

import gc
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from .contestants import all_contestants
from .measure import make_meter
from .registry import Contestant, NotInstalled
from .workload import Batch, Case, exact_work, make_batch, relative_error, work

TIME_LIMIT_S = 1200
EXIT_LIMIT_S = 30
CHECK_TOKENS, CHECK_VOCAB, CHECK_HIDDEN = 64, 1024, 256


@dataclass(frozen=True)
class Result:
    """What came out of one contestant on one case. `reason` is empty where it ran."""

    case: Case
    contestant: str
    does: str
    fraction: float
    version: str | None = None
    reason: str = ""
    seconds: float | None = None
    extra_bytes: int | None = None
    error: float | None = None


def run_apart(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a fresh process. Raises RuntimeError where that process dies or takes too long."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        if not ours.poll(TIME_LIMIT_S):
            process.kill()
            raise RuntimeError(f"stopped after {TIME_LIMIT_S} s")
        ok, value = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with exit code {process.exitcode}") from None
    finally:
        process.join(EXIT_LIMIT_S)
        process.kill()
        ours.close()
    if not ok:
        raise RuntimeError(value)
    return value


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple) -> None:
    # The table has standard output to itself, and the warnings of a dozen packages help nobody to read it.
    warnings.simplefilter("ignore")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        pipe.send((True, function(*args)))
    except Exception as error:
        pipe.send((False, _first_line(error)))


def measure_by_key(key: str, cases: list[Case], repeat: int) -> list[Result]:
    """`measure_contestant` by name, because functions inside functions cannot be sent to another process."""
    return measure_contestant(all_contestants().contestants[key], cases, repeat)


def measure_contestant(contestant: Contestant, cases: list[Case], repeat: int) -> list[Result]:
    """Run it on every case, in this process. Its failures are reported in the results, never raised."""
    torch.set_num_threads(1)
    start = Result(cases[0], contestant.name, contestant.does, contestant.fraction, contestant.version())
    try:
        modules = contestant.load()
    except NotInstalled as error:
        return [replace(start, case=case, reason=str(error)) for case in cases]
    except Exception as error:
        return [replace(start, case=case, reason=f"import failed: {_first_line(error)}") for case in cases]
    group = _group_of_one(cases[0].device, contestant.megatron)
    results = []
    made = None
    for case in cases:
        result = replace(start, case=case)
        try:
            # Cases that differ in the entropy coefficient alone share their tensors.
            if made is None or replace(made, entropy_coef=case.entropy_coef) != case:
                batch = made = None
                _free(case.device)
                batch, made = make_batch(case, contestant.fraction, group), case
            batch = replace(batch, entropy_coef=case.entropy_coef)
            results.append(_measure_case(contestant, modules, result, batch, repeat))
        except Exception as error:
            results.append(replace(result, reason=_first_line(error)))
            # It may have changed the batch.
            made = None
    dist.destroy_process_group()
    return results


def _measure_case(contestant: Contestant, modules: list, result: Result, batch: Batch, repeat: int) -> Result:
    error = gradient_error(contestant, modules, result.case, batch.group)
    original = None if batch.logits is None else batch.logits.clone()

    def restore() -> None:
        if original is not None:
            batch.logits.copy_(original)

    def run() -> None:
        work(contestant, modules, batch)

    meter = make_meter(result.case.device)
    run()
    extra = meter.extra_bytes(run, restore)
    seconds = meter.seconds(run, restore, repeat)
    restore()
    return replace(result, error=error, extra_bytes=extra, seconds=seconds)


def gradient_error(contestant: Contestant, modules: list, case: Case, group: dist.ProcessGroup | None) -> float | None:
    """Its gradients on a small batch like `case`, against float64 (level "statistics": its results).

    None where it returns nothing. The batch has the same hidden states, or logits, for every contestant.
    """
    small = replace(case, tokens=CHECK_TOKENS, vocab=CHECK_VOCAB, hidden=None if case.hidden is None else CHECK_HIDDEN)
    batch = make_batch(small, contestant.fraction, group, seed=1)
    exact = exact_work(case.level, batch)
    found = work(contestant, modules, batch)
    return relative_error(found, exact) if found else None


def _group_of_one(device: str, megatron: bool) -> dist.ProcessGroup:
    """A process group with this rank alone, for contestants that reduce over a tensor-parallel group."""
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if megatron:
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
    return dist.group.WORLD


def _free(device: str) -> None:
    """Give back what an earlier case, perhaps one that ran out of memory, left behind."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
