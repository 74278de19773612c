"""Shared fixtures: tiny models on disk and a pool of gloo workers.

What they need is imported in the fixtures: the tests of the kernels run where the trainer's own packages are missing.
"""

import pytest
import torch

from tests.threads import limit_threads

limit_threads()
SLOW = "--slow"


def pytest_addoption(parser):
    parser.addoption(SLOW, action="store_true", help="also the long tests, see `make test-all`")


def pytest_collection_modifyitems(config, items):
    if config.getoption(SLOW):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=f"takes minutes in all; run it with {SLOW}"))


@pytest.fixture(scope="session")
def pool():
    """Gloo workers shared by all distributed tests."""
    from tests.distributed.pool import WorkerPool

    workers = WorkerPool()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model(family, tied)`: the directory of a tiny Hugging Face model, made once."""
    from tests.tiny import make_model

    made = {}

    def get(family: str = "qwen3", tied: bool = False, dtype=torch.float32):
        key = (family, tied, dtype)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(f"{family}-{'tied' if tied else 'untied'}"), *key)
        return made[key]

    return get
