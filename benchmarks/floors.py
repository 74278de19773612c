"""What no program can beat: the rates of the device, measured, and the time that a case needs at those rates."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .measure import Meter, make_meter
from .workload import DTYPES, Case

COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 4 * 2**30}
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Rates:
    """copy: bytes read plus bytes written, per second, of a large copy. gemm: FLOP/s of a large square product."""

    device: str
    hardware: str
    copy: float
    gemm: float


def measure_rates(device: str, dtype: str, repeat: int) -> Rates:
    """Measure both on random data, in this process, with one thread on the CPU. `device`: "cpu" or "cuda"."""
    torch.set_num_threads(1)
    meter = make_meter(device)
    copy, gemm = _copy_rate(meter, device, repeat), _gemm_rate(meter, device, dtype, repeat)
    return Rates(device, hardware_name(device), copy, gemm)


def _copy_rate(meter: Meter, device: str, repeat: int) -> float:
    source = torch.randint(0, 2**31, (COPY_BYTES[device] // 8,), device=device)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _seconds(meter, lambda: target.copy_(source), repeat)


def _gemm_rate(meter: Meter, device: str, dtype: str, repeat: int) -> float:
    size = GEMM_SIZE[device]
    left, right = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
    return 2 * size**3 / _seconds(meter, lambda: left @ right, repeat)


def floor_seconds(case: Case, fraction: float, rates: Rates) -> float:
    """The time that a case needs at these rates when everything else is free.

    statistics: one read of the logits. logits: two reads of the rows that weigh and one write of the whole gradient.
    hidden: three matrix products over the rows that weigh.
    """
    element = DTYPES[case.dtype].itemsize
    if case.level == "hidden":
        return 6 * case.tokens * case.hidden * case.vocab * fraction / rates.gemm
    passes = fraction if case.level == "statistics" else 2 * fraction + 1
    return passes * element * case.tokens * case.vocab / rates.copy


def _seconds(meter: Meter, run: Callable[[], object], repeat: int) -> float:
    run()
    return meter.seconds(run, lambda: None, repeat)


def hardware_name(device: str) -> str:
    """The device's name; of a CPU with the number of its threads, of which one is used."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, one thread of {len(names)}"
