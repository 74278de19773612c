"""What the loops over the logits cost on each architecture, in instructions of one thread per logit.

A GPU reads bfloat16 logits so fast that a thread has some 14 instructions for each; the backward pass moves twice the
bytes. A loop within the limits waits for the memory, not the memory for the loop.
"""

from collections import Counter

import pytest

pytest.importorskip("triton", reason="compiles Triton kernels: pip install triton")

from rest_kernels.triton_backend import launch
from tests.aot import launches

FORWARD_LIMIT = 11
BACKWARD_LIMIT = 12
COLUMNS = launches.SHARDS[0]
LOGITS_OF_A_THREAD = launch.block_columns(COLUMNS) // launch.NUM_THREADS


def check(compiler, record_property, kernel, dtype, *, limit: float, exponentials: int, stores: bool):
    """Wide loads and stores and nothing narrower, no float64, no exchange between threads, within the limits."""
    assembly, registers = compiler.disassembly(kernel), compiler.resources(kernel).registers
    assert assembly.float64() == [] and assembly.spills() == []
    loop = assembly.main_loop()
    wide = LOGITS_OF_A_THREAD * dtype.itemsize // launch.VECTOR_BYTES
    assert loop.opcodes("LDG") == Counter({"LDG.E.128": wide})
    assert loop.opcodes("STG") == Counter({"STG.E.128": wide} if stores else {})
    assert [x for x in ("BAR", "SHFL", "LDS", "STS") if loop.count(x)] == []
    assert 0 < loop.count("MUFU.EX2") <= exponentials
    per_logit = len(loop.body) / LOGITS_OF_A_THREAD
    record_property("instructions_per_logit", per_logit)
    record_property("registers", registers)
    assert per_logit <= limit
    # Four programs of 128 threads on a multiprocessor of 65536 registers.
    assert registers <= 128


# No padding, and a vocabulary of an odd size: its rows lie as well as before.
@pytest.mark.parametrize("padding", [0, 267])
@pytest.mark.parametrize("collision", [False, True])
def test_softmax_stats(compiler, record_property, architecture, dtype, collision, padding):
    shape = launches.Shape(dtype, COLUMNS, padding=padding)
    kernel = compiler.compile(architecture, lambda: launches.softmax_stats(shape, weights=True, collision=collision))
    # One for each logit, and one for the change of the maximum.
    exponentials = LOGITS_OF_A_THREAD + 1
    check(compiler, record_property, kernel, dtype, limit=FORWARD_LIMIT, exponentials=exponentials, stores=False)


@pytest.mark.parametrize("padding", [0, 267])
@pytest.mark.parametrize("entropy", [False, True])
def test_logits_gradient(compiler, record_property, architecture, dtype, entropy, padding):
    shape = launches.Shape(dtype, COLUMNS, padding=padding)
    kernel = compiler.compile(architecture, lambda: launches.logits_gradient(shape, entropy=entropy, upstream=True))
    exponentials = LOGITS_OF_A_THREAD
    check(compiler, record_property, kernel, dtype, limit=BACKWARD_LIMIT, exponentials=exponentials, stores=True)
