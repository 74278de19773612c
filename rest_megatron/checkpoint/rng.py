"""The states of this rank's random generators as tensors: python, numpy, torch, CUDA and Megatron's tracker."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

_TRACKER = "megatron/"


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """A copy of every state, on the CPU. A normal value that a generator keeps for its next call is 1 or 0 values."""
    _, words, kept = random.getstate()
    numpy = np.random.get_state(legacy=False)
    states = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python/normal": torch.tensor([] if kept is None else [kept], dtype=torch.float64),
        "numpy": torch.tensor([*numpy["state"]["key"].tolist(), numpy["state"]["pos"]], dtype=torch.int64),
        "numpy/normal": torch.tensor([numpy["gauss"]] if numpy["has_gauss"] else [], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        **{_TRACKER + name: state.clone() for name, state in get_cuda_rng_tracker().get_states().items()},
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def fits(states: Mapping[str, Tensor], device: torch.device) -> bool:
    """Whether `states` were taken from generators like this rank's."""
    own = rng_states(device)
    shape = {name: state.shape for name, state in states.items() if "normal" not in name}
    return shape == {name: state.shape for name, state in own.items() if "normal" not in name}


def set_rng_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on where `rng_states` was taken; `states` must fit."""
    kept, normal = states["python/normal"].tolist(), states["numpy/normal"].tolist()
    random.setstate((random.Random.VERSION, tuple(states["python"].tolist()), kept[0] if kept else None))
    *keys, position = states["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, len(normal), *(normal or [0.0])))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    tracker = {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    get_cuda_rng_tracker().set_states(tracker)
