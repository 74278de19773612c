"""The compiler of this folder's tests. They need Triton but no GPU, and a process without Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session", params=(80, 90, 100), ids="sm_{}".format)
def architecture(request) -> int:
    """A100, H100 and H200, B200."""
    return request.param


@pytest.fixture(scope="session", params=(torch.bfloat16, torch.float16, torch.float32), ids=str)
def dtype(request) -> torch.dtype:
    """Of the logits."""
    return request.param


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """A `Compiler` with an empty cache."""
    triton = pytest.importorskip("triton", reason="compiles Triton kernels: pip install triton")
    from rest_kernels.triton_backend import is_interpreted

    if triton.knobs.runtime.interpret or is_interpreted():
        pytest.fail(
            "TRITON_INTERPRET is set, and a process that interprets kernels cannot compile them. "
            "Run `pytest tests/aot` on its own, without it.",
            pytrace=False,
        )
    from tests.aot.compiler import Compiler

    return Compiler(tmp_path_factory.mktemp("triton"))
