"""Time and extra memory of a function, on the CPU and on a CUDA device."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

# More than any L2 cache, so that zeroing it leaves nothing else in there. Zeroing it several times keeps the device
# busy while the host queues the run, as the rest of a model does in training.
FLUSH_BYTES = 512 * 2**20
FLUSHES = 8


class CpuMeter:
    """CPU seconds of one thread (user and system, page faults included), the least of some runs.

    CPU time, because other processes on the machine lengthen the wall clock. The whole process counts, so nothing
    else may run in it.
    """

    def seconds(self, run: Callable[[], object], prepare: Callable[[], object], repeat: int) -> float:
        """`prepare` comes before every run and is not timed. The caller has warmed up."""
        times = []
        for _ in range(repeat):
            prepare()
            gc.collect()
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return min(times)

    def extra_bytes(self, run: Callable[[], object], prepare: Callable[[], object]) -> int | None:
        """How far the resident set grows during one run; None where the kernel cannot reset its high-water mark."""
        prepare()
        before = restart_high_water_mark()
        run()
        return None if before is None else high_water_mark() - before


class CudaMeter:
    """Seconds between CUDA events, the median of some runs, the L2 cache flushed before each.

    As `triton.testing.do_bench`, which has no room for a step that is not timed: losses that overwrite the logits
    need those restored before every run, else all runs but the first would work on gradients.
    """

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def seconds(self, run: Callable[[], object], prepare: Callable[[], object], repeat: int) -> float:
        """`prepare` comes before every run and is not timed. The caller has warmed up."""
        times = []
        for _ in range(repeat):
            gc.collect()
            prepare()
            for _ in range(FLUSHES):
                self.flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        return statistics.median(times)

    def extra_bytes(self, run: Callable[[], object], prepare: Callable[[], object]) -> int | None:
        """How far the memory held by tensors grows during one run."""
        prepare()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


Meter = CpuMeter | CudaMeter


def make_meter(device: str) -> Meter:
    """The meter for "cpu" or "cuda"."""
    return CudaMeter() if device == "cuda" else CpuMeter()


def restart_high_water_mark() -> int | None:
    """Forget the largest resident set so far; bytes of the present one. None where the kernel cannot forget it."""
    gc.collect()
    # Memory that the allocator keeps from earlier runs would hide what the next one needs.
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return high_water_mark()


def high_water_mark() -> int:
    """Bytes of the largest resident set of this process since it started, or since that was last forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
