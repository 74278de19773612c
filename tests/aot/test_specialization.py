"""How often Triton compiles: once for all shards of a vocabulary and for every number of tokens."""

import pytest
import torch

pytest.importorskip("triton", reason="compiles Triton kernels: pip install triton")

from tests.aot.launches import SHARDS, Shape, logits_gradient, merge_stats, ppo_rows, softmax_stats

ROWS = (1, 16, 17, 18, 256)
LAUNCHES = {
    "softmax_stats": lambda shape: softmax_stats(shape, weights=True, collision=True),
    "merge_stats": lambda shape: merge_stats(shape, shards=2),
    "ppo_rows": lambda shape: ppo_rows(shape, kl=True, entropy=True),
    "logits_gradient": lambda shape: logits_gradient(shape, entropy=True, upstream=True),
}
READ_LOGITS = ("softmax_stats", "logits_gradient")


def binaries(compiler, name, shapes) -> set[str]:
    """The different kernels that the launches need, on sm_90."""
    return {compiler.compile(90, lambda shape=shape: LAUNCHES[name](shape)).hash for shape in shapes}


@pytest.mark.parametrize("name", LAUNCHES)
def test_one_for_all_shards(compiler, name):
    assert len(binaries(compiler, name, [Shape(torch.bfloat16, columns) for columns in SHARDS])) == 1


@pytest.mark.parametrize("name", LAUNCHES)
def test_one_for_all_numbers_of_tokens(compiler, name):
    assert len(binaries(compiler, name, [Shape(torch.bfloat16, 2000, rows) for rows in ROWS])) == 1


@pytest.mark.parametrize("name", READ_LOGITS)
def test_aligned_rows_have_their_own(compiler, name):
    assert len(binaries(compiler, name, [Shape(torch.bfloat16, 2000), Shape(torch.bfloat16, 2001)])) == 2
