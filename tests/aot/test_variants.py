"""Every form of the kernels that the launcher can ask for compiles, without spills and without float64."""

from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="compiles Triton kernels: pip install triton")

from rest_kernels.triton_backend import launch
from tests.aot.launches import SHARDS, Shape, logits_gradient, merge_stats, ppo_rows, softmax_stats

# Columns and strides that 16 divides, with the block they get.
BLOCKS = {1008: 1024, 2000: 2048, SHARDS[0]: 4096}
ODD_COLUMNS = 1187
BOOLS = (False, True)


def check(compiler, kernel) -> None:
    """No spills, no float64. On a kernel of 128 threads, at most 128 registers let four run on a multiprocessor."""
    resources = compiler.resources(kernel)
    assert (resources.stack_bytes, resources.local_bytes) == (0, 0)
    assert resources.registers <= 128
    assert ".f64" not in kernel.asm["ptx"]


def test_blocks_are_all_the_launcher_uses():
    assert {columns: launch.block_columns(columns) for columns in BLOCKS} == BLOCKS
    assert {launch.block_columns(columns) for columns in range(1, 20000)} == set(BLOCKS.values())


@pytest.mark.parametrize("weights", BOOLS)
@pytest.mark.parametrize("collision", BOOLS)
def test_softmax_stats(compiler, architecture, dtype, weights, collision):
    shape = Shape(dtype, SHARDS[0])
    check(compiler, compiler.compile(architecture, lambda: softmax_stats(shape, weights=weights, collision=collision)))


@pytest.mark.parametrize("entropy", BOOLS)
@pytest.mark.parametrize("upstream", BOOLS)
def test_logits_gradient(compiler, architecture, dtype, entropy, upstream):
    shape = Shape(dtype, SHARDS[0])
    check(compiler, compiler.compile(architecture, lambda: logits_gradient(shape, entropy=entropy, upstream=upstream)))


@pytest.mark.parametrize(
    ("columns", "two_strides"),
    [(1008, False), (2000, False), (SHARDS[0], True), (ODD_COLUMNS, False)],
    ids=["block_1024", "block_2048", "two_strides", "odd"],
)
def test_other_shapes(compiler, architecture, dtype, columns, two_strides):
    shape = Shape(dtype, columns, two_strides=two_strides)
    check(compiler, compiler.compile(architecture, lambda: softmax_stats(shape, weights=True, collision=True)))
    check(compiler, compiler.compile(architecture, lambda: logits_gradient(shape, entropy=True, upstream=True)))


@pytest.mark.parametrize("shards", [1, 8])
def test_merge_stats(compiler, architecture, shards):
    kernel = compiler.compile(architecture, lambda: merge_stats(Shape(torch.bfloat16, 1), shards=shards))
    check(compiler, kernel)
    assert compiler.disassembly(kernel).float64() == []


@pytest.mark.parametrize(("kl", "entropy"), product(BOOLS, BOOLS))
def test_ppo_rows(compiler, architecture, kl, entropy):
    kernel = compiler.compile(architecture, lambda: ppo_rows(Shape(torch.bfloat16, 1), kl=kl, entropy=entropy))
    check(compiler, kernel)
    assert compiler.disassembly(kernel).float64() == []
