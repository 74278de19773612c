"""Weights that follow from each token by itself: methods beside ResT, which reads a token by its region's mean.

A rule gives the weight that multiplies the answer's advantage at a token, from the entropy H_t of the policy that drew
it, in nats, and its log-probability. Every rule keeps the scale of its source, so an answer's mean need not be 1; an
answer in which no token is kept weighs 0 everywhere and gives no gradient.

top_entropy  1[H_t >= tau], tau the least entropy among the keep_share tokens of highest entropy in the whole batch.
             arXiv 2506.01939: J = E[1/sum_i |o_i| sum_i sum_t 1[H_t >= tau] min(..)], so its normaliser counts ALL
             tokens, as ours then does with both seq-mean aggregations. With token-mean ours is the sum of weights: the
             tokens kept, which is the paper's loss times a factor. Ties with tau are kept.
entropy      1 + b (H_t / mean_i H - 1), mean over the answer's tokens: mean 1, at least 1 - b. Like GTPO, arXiv
             2508.04349, but not it: the paper shapes rewards, r_t = a1 r + a2 d_t H_t / sum_k H_kt at place t over the
             d_t right answers of a group that reach it, with 1/H in place of H for wrong ones, and normalises right and
             wrong ones apart. That needs answers that are right or wrong, and a reward per token in place of an
             advantage per answer. b = 0.1 is its a2 over a1; here H also raises the weight in bad answers.
rsi_s        1[low <= -log p_t / H_t <= high], the relative surprisal index, arXiv 2606.31575. The form is that of two
             public ports of the paper; its own band we have not seen, [0.5, 2] is that of a test of one of them.
             Normaliser as for top_entropy.
tao_rl       1 + b (H_t - mean H) / std H, at least 0, in turns after a tool's result, else 1; moments over the batch.
             arXiv 2606.03762, as its authors' code writes it (recipe tao_rl, aepo_shaping), b = 0.01. There the moments
             are those of a micro-batch under the policy being trained, and a micro-batch without such a turn is shaped
             everywhere: both depend on how the batch is cut, so here neither is so.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from rest_megatron.config.method import WeightsConfig, WeightsRule
from rest_megatron.method.means import mean_by

FLOOR = 1e-6  # of an entropy or a deviation that is divided by; the public ports of rsi_s add as much


@dataclass(frozen=True)
class TokenFacts:
    """What is known of one rank's T sampled tokens."""

    entropy: Tensor
    """float [T], in nats."""
    log_probs: Tensor
    """float [T], of the token itself."""
    sequence_index: Tensor
    """int64 [T] in [0, num_sequences): the answer of each token."""
    num_sequences: int
    after_tool: Tensor
    """bool [T]: whether the token's turn follows a tool's result."""
    batch_entropy: Tensor
    """float [N]: the entropies of all tokens of all ranks, in any order."""


@dataclass(frozen=True)
class TokenRule:
    """A weight for each token."""

    formula: str
    """The weight, as the help of `weights.rule` writes it."""
    reads: Set[str]
    """What it looks at besides the tokens' places: entropy, log_probs."""
    weight: Callable[[TokenFacts, WeightsConfig], Tensor]
    """float64 [T], at least 0."""


def top_entropy(facts: TokenFacts, settings: WeightsConfig) -> Tensor:
    """1 for tokens among the `keep_share` of highest entropy in the batch, at least one and all that tie with it."""
    everything = facts.batch_entropy
    if not len(everything):
        return torch.zeros_like(facts.entropy, dtype=torch.float64)
    kept = max(1, round(settings.keep_share * len(everything)))
    threshold = torch.kthvalue(everything, len(everything) - kept + 1).values  # torch.quantile ends at 16 M values
    return (facts.entropy >= threshold).double()


def entropy_slope(facts: TokenFacts, settings: WeightsConfig) -> Tensor:
    """1 + b (H_t / mean_i H - 1); 1 in an answer without entropy."""
    entropy = facts.entropy.double().clamp(min=0.0)
    mean = mean_by(facts.sequence_index, entropy, facts.num_sequences)[facts.sequence_index]
    relative = torch.where(mean > FLOOR, entropy / mean.clamp(min=FLOOR), 1.0)
    return 1.0 + settings.entropy_slope * (relative - 1.0)


def surprisal_band(facts: TokenFacts, settings: WeightsConfig) -> Tensor:
    """1 for tokens whose surprisal over entropy lies in [rsi_low, rsi_high]."""
    index = -facts.log_probs.double() / (facts.entropy.double().clamp(min=0.0) + FLOOR)
    return ((index >= settings.rsi_low) & (index <= settings.rsi_high)).double()


def after_tool_entropy(facts: TokenFacts, settings: WeightsConfig) -> Tensor:
    """1 + b (H_t - mean H) / std H after a tool's result, else 1."""
    everything = facts.batch_entropy.double().sort().values  # so that sums do not depend on the order of the ranks
    score = (facts.entropy.double() - everything.mean()) / (everything.std(correction=0) + FLOOR)
    return torch.where(facts.after_tool, (1.0 + settings.entropy_slope * score).clamp(min=0.0), 1.0)


# A new rule is a row here and a choice of `weights.rule`.
TOKEN_RULES: dict[WeightsRule, TokenRule] = {
    "top_entropy": TokenRule("1 for the keep_share of highest H", {"entropy"}, top_entropy),
    "entropy": TokenRule("1+b(H/mean(H)-1)", {"entropy"}, entropy_slope),
    "rsi_s": TokenRule("1 where -log(p)/H is within its bounds", {"entropy", "log_probs"}, surprisal_band),
    "tao_rl": TokenRule("1+b(H-mean(H))/std(H) after a tool's result", {"entropy"}, after_tool_entropy),
}


def token_rule_weights(facts: TokenFacts, settings: WeightsConfig) -> Tensor:
    """float32 [T]: the weight of each token by the rule of `settings`.

    Raises ValueError for a rule that is not one of TOKEN_RULES and for vectors of different lengths.
    """
    if settings.rule not in TOKEN_RULES:
        raise ValueError(
            f"rule {settings.rule!r} does not weigh tokens one by one; use one of {', '.join(TOKEN_RULES)}"
        )
    shapes = {tuple(x.shape) for x in (facts.entropy, facts.log_probs, facts.sequence_index, facts.after_tool)}
    if len(shapes) != 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"expected one value per token in each vector; got shapes {sorted(shapes)}")
    return TOKEN_RULES[settings.rule].weight(facts, settings).float()
