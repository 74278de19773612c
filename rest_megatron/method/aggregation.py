"""How token losses add up to one loss: a single vector, normalised over the GLOBAL mini-batch.

With sums in place of means, the loss does not depend on how the mini-batch is cut into micro-batches and ranks.
"""

import torch
from torch import Tensor

from rest_megatron.config.method import LossAggregation


def loss_weights(
    token_weights: Tensor,
    sequence_index: Tensor,
    num_sequences_global: int,
    mode: LossAggregation,
    total_weight_global: float,
    max_new_tokens: int,
) -> Tensor:
    """float32 [T] such that the sum of loss_weights * token_loss over all tokens of all ranks is the loss.

    token_weights: [T]. sequence_index: [T], which answer of this call each token belongs to; an answer is whole.
    num_sequences_global: answers in the global mini-batch. total_weight_global: sum of token weights in it.
    max_new_tokens: the longest answer a run allows. A mode reads only its own.

    seq-mean-token-mean:      w_t / T_i / num_sequences_global             (1/G sum_i 1/T_i sum_t, the paper's loss)
    token-mean:               w_t / total_weight_global                    (one weighted mean over all tokens, DAPO)
    seq-mean-token-sum-norm:  w_t / max_new_tokens / num_sequences_global  (1/G sum_i sum_t over a constant, Dr.GRPO)

    Raises ValueError for another mode or a normaliser that is not positive.
    """
    weights = token_weights.double()
    if mode == "seq-mean-token-mean":
        _positive(num_sequences_global=num_sequences_global)
        lengths = torch.bincount(sequence_index)[sequence_index]
        return (weights / lengths / num_sequences_global).float()
    if mode == "token-mean":
        _positive(total_weight_global=total_weight_global)
        return (weights / total_weight_global).float()
    if mode == "seq-mean-token-sum-norm":
        _positive(num_sequences_global=num_sequences_global, max_new_tokens=max_new_tokens)
        return (weights / max_new_tokens / num_sequences_global).float()
    raise ValueError(
        f"loss aggregation {mode!r} is unknown; use seq-mean-token-mean, token-mean or seq-mean-token-sum-norm"
    )


def _positive(**values: float) -> None:
    for name, number in values.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}; the global mini-batch needs at least one token to average over")
