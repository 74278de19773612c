"""The float32 masters and Adam moments of a DeepSpeed ZeRO-1 optimizer, one parameter at a time, exact to the bit.

ZeRO keeps each parameter group as one flat vector cut over data-parallel ranks. A parameter's `_hp_mapping` is the
fragment of it that this rank has; it is None where the rank has none.
"""

from collections.abc import Iterator
from typing import TypeAlias

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils.tensor_fragment import tensor_fragment
from torch import Tensor, nn

from rest_megatron.errors import CheckpointError

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (MASTER, *MOMENTS)
MAPPING = "_hp_mapping"

ZeroOptimizer: TypeAlias = "DeepSpeedZeroOptimizer | BF16_Optimizer"


def link_states(optimizer: ZeroOptimizer) -> None:
    """Give every partition the moments that the first step would, and every parameter its fragments of them.

    DeepSpeed itself does so in its first step, and with several parameter groups for the first of them alone.
    """
    base = optimizer.optimizer
    for partition in _partitions(base):
        state = base.state[partition]
        if not state:
            state.update({kind: torch.zeros_like(partition.data) for kind in MOMENTS})
            if _keeps_step_in_state(base):
                state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()


def whole_state(parameter: nn.Parameter, kind: str, owner: int, group: dist.ProcessGroup) -> Tensor | None:
    """A copy of one of KINDS in the parameter's shape, float32 on the CPU, on rank `owner` of the data-parallel group.

    None on its other ranks. Collective over the group.
    """
    bits = _own_bits(parameter, kind)
    if dist.get_world_size(group) > 1:
        dist.reduce(bits, group=group, group_dst=owner)
    if dist.get_rank(group) != owner:
        return None
    return bits.cpu().view(torch.float32).view(parameter.shape)


def whole_on_all(parameter: nn.Parameter, kind: str, group: dist.ProcessGroup) -> Tensor:
    """A copy of one of KINDS in the parameter's shape, float32 on its device, on all ranks of the group. Collective."""
    bits = _own_bits(parameter, kind)
    dist.all_reduce(bits, group=group)
    return bits.view(torch.float32).view(parameter.shape)


def has_fragment(parameter: nn.Parameter) -> bool:
    """Whether a part of the parameter's masters and moments is on this rank."""
    return _mapping(parameter) is not None


def set_state(parameter: nn.Parameter, kind: str, value: Tensor) -> None:
    """Take this rank's fragment of a whole state, float32 in the parameter's shape. `has_fragment` must hold."""
    mapping = _mapping(parameter)
    _state(mapping, kind).copy_(_fragment_of(value.flatten(), mapping))


def adam_step(optimizer: ZeroOptimizer) -> int:
    """The updates that the moments have seen. Raises CheckpointError when partitions differ in it."""
    base = optimizer.optimizer
    if _keeps_step_in_state(base):
        steps = {int(base.state[partition].get("step", 0)) for partition in _partitions(base)}
    else:
        steps = {int(group.get("step", 0)) for group in base.param_groups}
    if len(steps) > 1:
        raise CheckpointError(f"the parameter groups have seen different numbers of updates, {sorted(steps)}")
    return steps.pop()


def set_adam_step(optimizer: ZeroOptimizer, step: int) -> None:
    """Set what `adam_step` returns; it decides the bias correction of the next update."""
    base = optimizer.optimizer
    if _keeps_step_in_state(base):
        for partition in _partitions(base):
            base.state[partition]["step"].fill_(step)
    else:
        for group in base.param_groups:
            group["step"] = step


def _partitions(base: torch.optim.Optimizer) -> Iterator[Tensor]:
    """This rank's flat float32 masters, one for each parameter group."""
    for group in base.param_groups:
        yield from group["params"]


def _keeps_step_in_state(base: torch.optim.Optimizer) -> bool:
    """PyTorch's AdamW does; Apex's keeps it in the parameter group."""
    return isinstance(base, torch.optim.AdamW)


def _own_bits(parameter: nn.Parameter, kind: str) -> Tensor:
    """int32, flat: the bits of this rank's fragment of a state in their place, 0 elsewhere.

    Bits are added up over ranks, not numbers: 0.0 + -0.0 is 0.0.
    """
    bits = torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
    mapping = _mapping(parameter)
    if mapping is not None:
        _fragment_of(bits, mapping).copy_(_state(mapping, kind).view(torch.int32))
    return bits


def _mapping(parameter: nn.Parameter) -> tensor_fragment | None:
    """Where the fragment of this rank is; DeepSpeed has set the attribute on every parameter."""
    return getattr(parameter, MAPPING)


def _state(mapping: tensor_fragment, kind: str) -> Tensor:
    """This rank's fragment of a master or moment, as a view."""
    return mapping.get_hp_fragment(None if kind == MASTER else kind).detach()


def _fragment_of(flat: Tensor, mapping: tensor_fragment) -> Tensor:
    """The part of a parameter's `flat` vector that is on this rank."""
    place = mapping.lp_fragment_address
    return flat.narrow(0, place.start, place.numel)
