"""Shared fixtures: tiny models on disk and a pool of gloo workers."""

import pytest
import torch

from tests.distributed.pool import WorkerPool
from tests.tiny import make_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pool():
    """Gloo workers shared by all distributed tests."""
    workers = WorkerPool()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model(family, tied)`: the directory of a tiny Hugging Face model, made once."""
    made = {}

    def get(family: str = "qwen3", tied: bool = False, dtype=torch.float32):
        key = (family, tied, dtype)
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(f"{family}-{'tied' if tied else 'untied'}"), *key)
        return made[key]

    return get
