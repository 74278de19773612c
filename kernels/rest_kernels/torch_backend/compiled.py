"""Row functions through torch.compile, where it pays.

Compiled, a chunk of rows is read and written once, with no float32 buffer in between.
"""

import functools
import textwrap
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import torch

from .rows import Rows

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

# Compiling takes seconds, once per function and dtype (then from a cache on disk), and saves a quarter of a call's
# time. Calls that read fewer logits take less than 0.1 s and would never earn it back.
COMPILE_MIN_LOGITS = 1 << 25

# Logits per chunk. On a CPU it stays in cache, with its float32 buffers if eager; elsewhere a launch needs enough work.
CHUNK_ELEMENTS = 1 << 18
COMPILED_CHUNK_ELEMENTS = 1 << 20
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24

# The compiler's cache on disk does not tell CPUs apart: on one without AVX-512 it would give out code that was made for
# it, which then skips half of every row, without an error. These options are part of the cache's key.
VECTOR_BITS = {"AVX512": 512, "AVX2": 256}


class RowCompiler:
    """Runs row functions compiled, until that fails once: then, with a warning, as they are."""

    def __init__(self) -> None:
        self.works = True
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def run(self, function: Callable[[*Arguments], Result], *args: *Arguments) -> Result:
        """function(*args), which torch.compile must take as one graph. New sizes do not compile again, but tensors
        that lie elsewhere in a larger one would: pass whole tensors.
        """
        if self.works:
            try:
                return self._get(function)(*args)
            except Exception as error:  # whatever the compiler stack raises; an error of `function` comes again below
                self.works = False
                warnings.warn(
                    f"torch.compile of {function.__name__} failed, so rest_kernels runs eagerly on this CPU, which "
                    f"takes about 1.4 times as long: {type(error).__name__}: {textwrap.shorten(str(error), 500)}",
                    stacklevel=2,
                )
        return function(*args)

    def _get(self, function: Callable[..., Result]) -> Callable[..., Result]:
        if function not in self._compiled:
            bits = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
            options: dict[str, str | int | bool | Callable[..., Any]] = {} if bits is None else {"cpp.simdlen": bits}
            self._compiled[function] = torch.compile(function, dynamic=True, fullgraph=True, options=options)
        return self._compiled[function]


_COMPILER = RowCompiler()


class RowFunction(NamedTuple):
    """How a pass runs its row function."""

    run: Callable
    chunk_elements: int
    """How many logits to give it at a time."""
    compiled: bool


def row_function(function: Callable, rows: Rows) -> RowFunction:
    """`function` for a pass over `rows`: compiled on a CPU if they are many."""
    if rows.tensor.device.type != "cpu":
        return RowFunction(function, ACCELERATOR_CHUNK_ELEMENTS, compiled=False)
    if not _COMPILER.works or rows.num_elements < COMPILE_MIN_LOGITS:
        return RowFunction(function, CHUNK_ELEMENTS, compiled=False)
    return RowFunction(functools.partial(_COMPILER.run, function), COMPILED_CHUNK_ELEMENTS, compiled=True)
