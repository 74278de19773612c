"""Bad arguments are refused before anything is computed."""

import math
from numbers import Real

import torch
import torch.distributed as dist
from torch import Tensor

from .layout import row_layout
from .tokens import Tokens

# Far below any use. Its inverse and the exponents made with it stay finite in float32.
MIN_TEMPERATURE = 1e-6
LOGITS_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_logits(logits: Tensor, labels: Tensor, temperature: float) -> None:
    """Raise TypeError for a dtype and ValueError for a shape, stride or temperature the kernels cannot take."""
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(f"logits are {logits.dtype}; they must be bfloat16, float16, float32 or float64.")
    if logits.dim() == 0:
        raise ValueError("logits are a scalar; they must have the shape [..., V_local].")
    check_tokens(labels, logits.shape[:-1], "logits", logits.device)
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        raise ValueError(
            f"the last dimension of the logits has stride {logits.stride(-1)}; it must be 1 (the vocabulary is "
            "contiguous within a row). Call .contiguous() or keep the vocabulary last."
        )
    row_layout(logits)
    check_temperature(temperature)


def check_linear(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    temperature: float,
    tp_group: dist.ProcessGroup | None,
    sequence_parallel: bool,
    chunk_size: int,
) -> None:
    """Raise TypeError or ValueError for hidden states and a weight that do not make logits of the labels."""
    if hidden.dtype not in LOGITS_DTYPES or weight.dtype != hidden.dtype:
        raise TypeError(
            f"hidden is {hidden.dtype}, weight {weight.dtype}; both must be one of bfloat16, float16, float32, float64."
        )
    if hidden.dim() < 2 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden has the shape {list(hidden.shape)}, weight {list(weight.shape)}; they must be [..., H] and "
            "[V_local, H]."
        )
    if hidden.device != weight.device:
        raise ValueError(f"hidden is on {hidden.device}, weight on {weight.device}; both must be on one device.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1 row.")
    if sequence_parallel and tp_group is None:
        raise ValueError("sequence_parallel=True needs the tp_group over which the sequence is cut; it is None.")
    parts = tp_group.size() if sequence_parallel and tp_group is not None else 1
    whole = torch.Size((hidden.shape[0] * parts, *hidden.shape[1:-1]))
    check_tokens(labels, whole, "whole hidden states" if sequence_parallel else "hidden states", hidden.device)
    check_temperature(temperature)


def check_tokens(labels: Tensor, leading_shape: torch.Size, name: str, device: torch.device) -> None:
    """Raise TypeError unless labels are int64, ValueError unless they have the leading shape and device of `name`."""
    if labels.dtype != torch.int64:
        raise TypeError(f"labels are {labels.dtype}; they must be int64 token ids of the whole vocabulary.")
    if labels.shape != leading_shape:
        raise ValueError(
            f"labels have the shape {list(labels.shape)}; they must have that of the {name} without its last "
            f"dimension, {list(leading_shape)}."
        )
    if labels.device != device:
        raise ValueError(f"labels are on {labels.device}, {name} on {device}; both must be on one device.")


def check_temperature(temperature: float) -> None:
    """Raise TypeError unless the temperature is a number, ValueError unless it is finite and at least 1e-6."""
    if not isinstance(temperature, Real):
        raise TypeError(f"temperature is a {type(temperature).__name__}; it must be a number, one for all tokens.")
    if not (math.isfinite(temperature) and temperature >= MIN_TEMPERATURE):
        raise ValueError(f"temperature is {temperature}; it must be finite and at least {MIN_TEMPERATURE}.")


def check_labels(tokens: Tokens, vocab_size: int) -> None:
    """Raise ValueError when the label of an active row is no id of the vocabulary, where looking costs no wait.

    On a GPU it would wait for the device; such a label gives not-a-number there.
    """
    if tokens.labels.device.type != "cpu":
        return
    labels = tokens.labels[tokens.active()]
    wrong = (labels < 0) | (labels >= vocab_size)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {len(labels)} labels are outside the vocabulary [0, {vocab_size}), the first is "
            f"{int(labels[wrong][0])}. Give tokens without a target the label `ignore_index`."
        )


def check_token_vectors(labels: Tensor, **vectors: Tensor | None) -> None:
    """Raise when a per-token vector is not floating point (TypeError) or not of the labels' shape (ValueError)."""
    for name, vector in vectors.items():
        if vector is None:
            continue
        if not vector.is_floating_point():
            raise TypeError(f"{name} is {vector.dtype}; it must be floating point.")
        if vector.shape != labels.shape:
            raise ValueError(f"{name} has the shape {list(vector.shape)}; labels have {list(labels.shape)}.")
        if vector.device != labels.device:
            raise ValueError(f"{name} is on {vector.device}, labels on {labels.device}; both must be on one device.")


def check_inplace(logits: Tensor, inplace_backward: bool) -> None:
    """Raise ValueError when a gradient must overwrite logits that somebody else, or another row, will read."""
    num_columns = logits.shape[-1]
    sizes = zip(logits.shape[:-1], logits.stride()[:-1], strict=True)
    if inplace_backward and any(size > 1 and stride < num_columns for size, stride in sizes):
        raise ValueError(
            f"inplace_backward=True, but rows of the logits {list(logits.shape)} with strides {list(logits.stride())} "
            "overlap in memory (an expanded tensor?): their gradients would overwrite each other. Pass False, or call "
            ".contiguous()."
        )
    if inplace_backward and logits.requires_grad and logits.is_leaf:
        raise ValueError(
            "inplace_backward=True overwrites the logits with their gradient, but these logits are a leaf tensor (a "
            "parameter or an input): nothing would be left of them. Pass the output of an operation, or False."
        )
