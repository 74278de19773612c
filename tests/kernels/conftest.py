"""Every test that takes `target` runs on each backend that this machine and this process have.

Plain: torch on the CPU, and on a GPU Triton and torch. With TRITON_INTERPRET=1: Triton's kernels on CPU tensors.
"""

import pytest
import torch

from tests.kernels.target import CUDA_TRITON, Target, available_targets


def pytest_generate_tests(metafunc):
    if "target" in metafunc.fixturenames:
        params = [
            pytest.param(target, id=str(target), marks=pytest.mark.gpu if target.device == "cuda" else ())
            for target in available_targets()
        ]
        metafunc.parametrize("target", params, scope="session")


def pytest_collection_modifyitems(config, items):
    """Leave out what does not exist: Triton's passes in float64."""
    kept, left_out = [], []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        target = params.get("target")
        missing = isinstance(target, Target) and target.backend == "triton" and _in_float64(params)
        (left_out if missing else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _in_float64(params):
    """Whether one of them is the dtype, or a case of that dtype."""
    return any(getattr(value, "dtype", value) == torch.float64 for value in params.values())


def pytest_make_parametrize_id(config, val, argname):
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None


@pytest.fixture
def cuda_triton():
    """The kernels as they run in training, for what only a GPU shows. Mark such tests `gpu`."""
    if CUDA_TRITON not in available_targets():
        pytest.skip("no CUDA device on this machine")
    return CUDA_TRITON
