"""Whether what is trained favours long or short answers.

Over the step's answers that have a gradient, those whose absolute weight in the loss is above 0, with the number of
sampled tokens l, the advantage A and a = sum_t |w_t A|, w_t the token's weight in the loss with its normaliser:

    length_bias/correlation   Pearson's correlation of A and l: above 0, longer answers are the better ones
    length_bias/better        mean l where A > 0 over mean l where A < 0: above 1, longer answers are made likelier
    length_bias/weight        (sum a l / sum a) over the mean of l: above 1, the loss looks more at longer answers

The first two come of the rewards, the last of advantages, token weights, importance and loss aggregation: a mean over
each answer's tokens does not look at its length, a sum weighs long answers more (Dr.GRPO, arXiv 2503.20783). nan where
there is nothing to compare: no answer, equal lengths or advantages for the first, one sign for the second.
"""

import math

import torch
from torch import Tensor


def length_bias(lengths: Tensor, advantages: Tensor, weights: Tensor) -> dict[str, float]:
    """The numbers above, in float64.

    lengths, advantages, weights: [N] of all answers of the global batch: l, A and a. An answer of weight 0 is left out.
    """
    trained = weights > 0
    length, advantage, weight = (values[trained].double() for values in (lengths, advantages, weights))
    better, worse = length[advantage > 0].mean(), length[advantage < 0].mean()
    return {
        "length_bias/correlation": _correlation(length, advantage),
        "length_bias/better": float(better / worse),
        "length_bias/weight": float((weight * length).sum() / weight.sum() / length.mean()),
    }


def _correlation(first: Tensor, second: Tensor) -> float:
    """nan where one of them does not vary, which rounding of their mean would hide."""
    if any(len(values.unique()) < 2 for values in (first, second)):
        return math.nan
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])
