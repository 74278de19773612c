"""Bad arguments are refused before anything is computed or exchanged."""

import math

import torch
from torch import Tensor

LOGITS_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def check_logits(logits: Tensor, labels: Tensor, temperature: float) -> None:
    """Raise TypeError for a dtype and ValueError for a shape, stride or temperature the kernels cannot take."""
    if logits.dtype not in LOGITS_DTYPES:
        raise TypeError(f"logits are {logits.dtype}; they must be bfloat16, float16, float32 or float64.")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels are {labels.dtype}; they must be int64 token ids of the whole vocabulary.")
    if logits.dim() == 0:
        raise ValueError("logits are a scalar; they must have the shape [..., V_local].")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have the shape {list(labels.shape)}, logits {list(logits.shape)}: labels must have the shape of "
            f"the logits without their last dimension, {list(logits.shape[:-1])}."
        )
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        raise ValueError(
            f"the last dimension of the logits has stride {logits.stride(-1)}; it must be 1 (the vocabulary is "
            "contiguous within a row). Call .contiguous() or keep the vocabulary last."
        )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; it must be finite and above 0.")


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Raise ValueError when a label [N] is no id of the vocabulary. Waits for the device."""
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


def check_ppo_settings(
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_dual: float | None,
    kl_coef: float,
    entropy_coef: float,
    ref_log_probs: Tensor | None,
) -> None:
    """Raise ValueError for clip bounds that do not enclose 1, or coefficients that cannot be used."""
    if not 0 <= clip_ratio_low <= 1:
        raise ValueError(f"clip_ratio_low is {clip_ratio_low}; it must lie in [0, 1].")
    if not (math.isfinite(clip_ratio_high) and clip_ratio_high >= 0):
        raise ValueError(f"clip_ratio_high is {clip_ratio_high}; it must be finite and at least 0.")
    if clip_ratio_dual is not None and not (math.isfinite(clip_ratio_dual) and clip_ratio_dual > 1):
        raise ValueError(f"clip_ratio_dual is {clip_ratio_dual}; it must be finite and above 1, or None for none.")
    for name, coefficient in (("kl_coef", kl_coef), ("entropy_coef", entropy_coef)):
        if not math.isfinite(coefficient):
            raise ValueError(f"{name} is {coefficient}; it must be finite.")
    if kl_coef != 0 and ref_log_probs is None:
        raise ValueError(f"kl_coef is {kl_coef} but ref_log_probs is None; pass them, or set kl_coef to 0.")
