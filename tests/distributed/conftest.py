"""What the distributed tests share: the answers, Hugging Face's numbers and noise, and each layout's numbers."""

import pytest
import torch

from tests.distributed import noise
from tests.distributed.cases import gradients_and_updates
from tests.tiny import make_answers, oracle


@pytest.fixture(scope="session")
def answers():
    """Sixteen ragged trajectories, three groups with a shared prompt each and one by itself."""
    return make_answers(shared=True)


@pytest.fixture(scope="session")
def masked_answers():
    """As many with tool tokens in the middle of each, and one of tool tokens alone."""
    return make_answers(masked=True, shared=True)


@pytest.fixture(scope="session")
def exact(tiny_model, answers):
    """`exact(family, tied)`: Hugging Face in float64 on the tiny model and the answers."""
    made = {}

    def get(family: str = "qwen3", tied: bool = False):
        if (family, tied) not in made:
            made[family, tied] = oracle(tiny_model(family, tied), answers)
        return made[family, tied]

    return get


@pytest.fixture(scope="session")
def bars(tiny_model, answers, exact, record_testsuite_property):
    """`bars(family, tied)`: what float32 may be off by on this machine, see `noise`."""
    made = {}

    def get(family: str = "qwen3", tied: bool = False):
        if (family, tied) not in made:
            single = oracle(tiny_model(family, tied), answers, torch.float32)
            found = noise.noise(single, exact(family, tied))
            for name, error in found.items():
                record_testsuite_property(name, f"{error:.3e}")
            made[family, tied] = noise.bars(found)
        return made[family, tied]

    return get


@pytest.fixture
def within(record_property):
    """`within(errors, bars)`: no error is above its bar. With --junitxml both are kept for `benchmarks/noise.py`."""

    def check(errors, bars):
        for name, error in errors.items():
            record_property(name, f"{error:.3e} of {bars[name]:.3e}")
        assert not noise.above(errors, bars)

    return check


@pytest.fixture(scope="session")
def measure(pool, tiny_model, answers):
    """`measure(family, tied, layout)`: every rank's `gradients_and_updates` in float32, two steps, launched once."""
    made = {}

    def get(family, tied, layout):
        key = (family, tied, str(layout))
        if key not in made:
            args = (tiny_model(family, tied), layout, answers, "float32", 2)
            made[key] = pool.run(gradients_and_updates, layout.world_size, *args)
        return made[key]

    return get
