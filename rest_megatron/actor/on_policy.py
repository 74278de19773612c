"""The policy loss of an update whose old log-probs are its own: the first one, by the weights that drew the answers.

The probability ratio is 1 and only its gradient is left, so one forward pass gives the log-probs, the entropies and the
loss. What corrects for the engine (`method.importance`) needs log-probs, too, and is applied here.
"""

import torch
from torch import Tensor

from rest_kernels import LogProbEntropy
from rest_kernels.reference import kl_to_reference, ppo_token_loss
from rest_megatron.actor.microbatch import MicroBatch
from rest_megatron.config.schema import AlgorithmConfig
from rest_megatron.method.importance import importance_ratios
from rest_megatron.method.ratio import sequence_ppo_loss
from rest_megatron.types import PolicyStreams


def on_policy_loss(
    stats: LogProbEntropy, streams: PolicyStreams, batch: MicroBatch, algorithm: AlgorithmConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, its metric sums) of a micro-batch's targets; stats: theirs, with gradient.

    streams: of the same targets, but old_log_probs are the engine's, and loss_weights hold no importance. The result is
    that of the clipped loss with old_log_probs = log_probs, held constant; nothing is clipped at a ratio of 1.
    """
    log_probs = stats.log_probs
    old = log_probs.detach()
    ratios = importance_ratios(
        old,
        streams.old_log_probs,
        batch.sequence_index,
        batch.num_sequences,
        algorithm.importance_cap,
        algorithm.importance_mask,
    )
    weights = torch.where(streams.loss_weights == 0, 0.0, streams.loss_weights * ratios)
    used = weights != 0
    if algorithm.ratio == "sequence":
        return answer_loss(stats, streams._replace(old_log_probs=old, loss_weights=weights), batch, algorithm)
    clips = {"clip_ratio_low": algorithm.clip_ratio_low, "clip_ratio_high": algorithm.clip_ratio_high}
    token_loss = ppo_token_loss(log_probs, old, streams.advantages, **clips)
    if streams.ref_log_probs is not None:
        token_loss = token_loss + algorithm.kl_coef * kl_to_reference(log_probs, streams.ref_log_probs)
    if algorithm.entropy_coef > 0:
        token_loss = token_loss - algorithm.entropy_coef * stats.entropy
    # Not 0 * inf where a log-prob that does not count is not finite.
    loss = (weights * token_loss.masked_fill(~used, 0.0)).sum()
    count, none = used.sum(), torch.zeros((), device=loss.device)
    sums = {"num_tokens": count, "ratio": count, "clipped": none, "clipped_low": none, "approx_kl": none}
    return loss, sums | {"entropy": torch.where(used, stats.entropy.detach(), 0.0).sum()}


def answer_loss(
    stats: LogProbEntropy, streams: PolicyStreams, batch: MicroBatch, algorithm: AlgorithmConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss on whole answers' ratios (GSPO) and its metric sums, of any update.

    The arguments are those of `on_policy_loss`, but for old_log_probs, which are the actor's, and loss_weights, which
    hold importance.
    """
    loss, sums = sequence_ppo_loss(
        stats.log_probs,
        streams.old_log_probs,
        streams.advantages,
        streams.loss_weights,
        batch.sequence_index,
        batch.num_sequences,
        clip_ratio_low=algorithm.clip_ratio_low,
        clip_ratio_high=algorithm.clip_ratio_high,
    )
    return loss, sums | {"entropy": (stats.entropy.detach() * (streams.loss_weights != 0)).sum()}
