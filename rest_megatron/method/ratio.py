"""GSPO (arXiv 2507.18071): the clipped loss with one probability ratio per answer.

    s_i = (p(y_i) / p_old(y_i))^(1/T_i) = exp(mean_t (log_probs_t - old_log_probs_t))                     (Eq. 7)

In the paper's first form the gradient of s_i reaches every token alike, so weights that differ between the tokens of
an answer would change nothing. We use its second form, GSPO-token (Eq. 13-14), made for values per token:

    s_{i,t} = sg[s_i] p_t / sg[p_t]     sg: held constant in the gradient

Its value is s_i at every token, so what is clipped is the same, and where the tokens of an answer weigh the same, so is
the gradient. Otherwise each token's gradient follows its own weight. As in the kernels, log ratios are held within
+-20, so that exp stays finite, and a ratio beyond has no gradient.
"""

from torch import Tensor

from rest_kernels.reference import bounded_log_ratio, clipped_loss, held_by_clip, kl_to_reference
from rest_megatron.method.means import mean_by


def sequence_ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    loss_weights: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    clip_ratio_low: float,
    clip_ratio_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics): loss = sum_t loss_weights_t max(-A_t s, -A_t clip(s, 1 - low, 1 + high)), a scalar.

    All tensors are [T], the response tokens of a micro-batch. log_probs carry the gradient, the others are constants.
    advantages: the answer's, at each of its tokens. loss_weights hold token weight and normaliser. sequence_index: in
    [0, num_sequences), the answer of each token; an answer is whole, tokens of weight 0 included, for s_i needs all.

    metrics: sums over the tokens whose loss weight is not 0, 0-dim, to be added over micro-batches and data-parallel
    ranks and divided by num_tokens:
        num_tokens; ratio: s_i; clipped: tokens of an answer whose ratio the clip holds, so that it has no gradient;
        clipped_low: those of them with A < 0; approx_kl: k3 estimate of KL(old || policy), e^d - 1 - d with
        d = log_probs - old_log_probs of the token.
    """
    gap = log_probs.detach() - old_log_probs
    means = mean_by(sequence_index, gap, num_sequences).to(log_probs.dtype)
    ratio = bounded_log_ratio(log_probs - log_probs.detach() + means[sequence_index]).exp()
    clips = {"clip_ratio_low": clip_ratio_low, "clip_ratio_high": clip_ratio_high}
    token_loss = clipped_loss(ratio, advantages, **clips)

    used = loss_weights != 0
    value = ratio.detach()
    clipped = used & held_by_clip(value, advantages, **clips)
    metrics = {
        "num_tokens": used,
        "clipped": clipped,
        "clipped_low": clipped & (advantages < 0),
        # k3 of KL(old || policy): the answers are the old policy's.
        "approx_kl": kl_to_reference(old_log_probs, log_probs.detach()) * used,
        "ratio": value * used,
    }
    return (loss_weights * token_loss).sum(), {name: x.to(value.dtype).sum() for name, x in metrics.items()}
