"""Which code makes the passes: Triton kernels on a GPU, chunked torch elsewhere."""

from importlib.util import find_spec
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from .settings import PPOSettings
from .tokens import MergedStats, PPOInputs, PPORows, Softmax, Tokens

BackendName = Literal["auto", "triton", "torch"]


class Backend(Protocol):
    """The four passes. `torch_backend` and `triton_backend` are modules of this shape.

    Logits [..., V_local] have T rows. Nothing is changed in place, except by `logits_gradient` where asked to.
    """

    def softmax_stats(self, logits: Tensor, tokens: Tokens, softmax: Softmax, collision: bool) -> Tensor:
        """One read of the logits: [T, 5], `reference.shard_stats` of each active row of this shard.

        Column q may be 0 when `collision` is not asked for. Rows that are not active are undefined.
        """

    def merge_stats(self, stats: Tensor, tokens: Tokens, softmax: Softmax) -> MergedStats:
        """The softmax of whole rows from the statistics [shards, T, 5] of all shards."""

    def ppo_rows(
        self, stats: Tensor, tokens: Tokens, softmax: Softmax, inputs: PPOInputs, settings: PPOSettings
    ) -> PPORows:
        """As `merge_stats`, and the policy loss with its derivative."""

    def logits_gradient(
        self,
        logits: Tensor,
        tokens: Tokens,
        softmax: Softmax,
        merged: MergedStats,
        log_prob_grad: Tensor,
        entropy_grad: Tensor | None,
        upstream: Tensor | None,
        inplace: bool,
    ) -> Tensor:
        """One read and one write: the gradient, of the logits' shape and dtype, summed in float32 and rounded once.

        g and h, [T], are multiplied by the scalar `upstream` (None: 1). Rows whose g and h are 0 are not read and get
        exactly 0, as do columns of padding. `inplace`: write it over the logits.
        """


def choose_backend(name: BackendName, logits_dtype: torch.dtype, device: torch.device) -> Backend:
    """The backend for `name`: "auto", "triton" or "torch".

    "auto" takes Triton for CUDA tensors, where it is installed and takes the dtype, else torch. Raises ValueError for
    any other name and for Triton without a GPU, ImportError where Triton is missing, TypeError for its dtypes.
    """
    if name not in get_args(BackendName):
        raise ValueError(f"backend is {name!r}; it must be 'auto', 'triton' or 'torch'.")
    if name == "auto":
        fits = device.type == "cuda" and logits_dtype != torch.float64 and find_spec("triton") is not None
        name = "triton" if fits else "torch"
    if name == "torch":
        from . import torch_backend

        return torch_backend
    if logits_dtype == torch.float64:
        raise TypeError("backend='triton' takes bfloat16, float16 and float32 logits, not float64; use 'torch'.")
    from . import triton_backend

    if device.type != "cuda" and not triton_backend.is_interpreted():
        raise ValueError(
            f"backend='triton' needs CUDA tensors; these are on {device}. Use 'torch' or 'auto' there (or start Python "
            "with TRITON_INTERPRET=1, which runs the kernels slowly, for tests)."
        )
    return triton_backend
