"""Rules that weigh tokens one by one, against the same written out in numpy, token by token."""

import math

import numpy as np
import pytest
import torch

from rest_megatron.config import check_method
from rest_megatron.config.method import WeightsConfig
from rest_megatron.method.token_rules import TOKEN_RULES, TokenFacts, token_rule_weights

LENGTHS = (7, 1, 30, 12)


def facts(seed=0, entropy=None, batch_entropy=None, lengths=LENGTHS):
    """Random answers, a third of whose tokens come after a tool's result; other ranks hold as much again."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    own = rng.gamma(0.5, 1.0, total) if entropy is None else np.asarray(entropy, dtype=float)
    everything = np.concatenate([rng.gamma(0.7, 1.0, total), own]) if batch_entropy is None else batch_entropy
    return TokenFacts(
        torch.tensor(own),
        torch.tensor(-rng.gamma(0.5, 1.0, total)),
        torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)),
        len(lengths),
        torch.tensor(rng.random(total) < 1 / 3),
        torch.tensor(np.asarray(everything, dtype=float)),
    )


def written_out(rule, known, settings):
    """Each rule's weights, from its formula."""
    entropy, surprisal = known.entropy.numpy(), -known.log_probs.numpy()
    everything, answer = known.batch_entropy.numpy(), known.sequence_index.numpy()
    b, weights = settings.entropy_slope, []
    largest = sorted(everything, reverse=True)[: round(settings.keep_share * len(everything))]
    mean = sum(everything) / len(everything)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in everything) / len(everything))
    for t, own in enumerate(entropy):
        peers = entropy[answer == answer[t]]
        if rule == "top_entropy":
            weights.append(float(own in largest))
        elif rule == "entropy":
            weights.append(1 + b * (own / (sum(peers) / len(peers)) - 1))
        elif rule == "rsi_s":
            weights.append(float(settings.rsi_low * own <= surprisal[t] <= settings.rsi_high * own))
        else:
            weights.append(max(0.0, 1 + b * (own - mean) / deviation) if known.after_tool[t] else 1.0)
    return weights


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [{}, {"keep_share": 0.5, "entropy_slope": 1.0, "rsi_low": 0.0, "rsi_high": 1.0}],
    ids=["default", "other"],
)
@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_the_weights_are_those_of_the_formula(rule, changes, seed):
    settings, known = WeightsConfig(rule=rule, **changes), facts(seed)
    weights = token_rule_weights(known, settings)
    assert weights.dtype == torch.float32 and len(set(weights.tolist())) > 1
    assert weights.numpy() == pytest.approx(written_out(rule, known, settings), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_a_rule_reads_what_its_row_names_and_nothing_else(rule):
    known, settings = facts(), WeightsConfig(rule=rule)
    before = token_rule_weights(known, settings)
    for name in ("entropy", "log_probs"):
        other = facts(1)
        changed = TokenFacts(**{**vars(known), name: getattr(other, name)})
        same = torch.equal(token_rule_weights(changed, settings), before)
        # Without a token after a tool's result tao_rl would read nothing; here a third are.
        assert same == (name not in TOKEN_RULES[rule].reads), name


@pytest.mark.parametrize("share, kept", [(0.2, 2), (0.01, 1), (0.25, 2), (0.94, 9), (1.0, 10)])
def test_the_share_of_top_entropy_is_that_of_the_whole_batch(share, kept):
    entropy = np.arange(10.0)
    known = facts(entropy=entropy[5:], batch_entropy=entropy, lengths=(5,))
    weights = token_rule_weights(known, WeightsConfig(rule="top_entropy", keep_share=share))
    assert weights.tolist() == [float(h >= 10 - kept) for h in entropy[5:]]


def test_tokens_that_tie_with_the_threshold_are_all_kept():
    entropy = [3.0, 1.0, 1.0, 1.0, 0.0]
    weights = token_rule_weights(
        facts(entropy=entropy, batch_entropy=entropy, lengths=(3, 2)),
        WeightsConfig(rule="top_entropy", keep_share=0.4),
    )
    assert weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_an_answer_of_which_no_token_is_kept_weighs_nothing():
    known = facts(entropy=[0.0, 0.1, 2.0, 3.0], batch_entropy=[0.0, 0.1, 2.0, 3.0], lengths=(2, 2))
    weights = token_rule_weights(known, WeightsConfig(rule="top_entropy", keep_share=0.5))
    assert weights.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("slope", [0.0, 0.1, 1.0])
def test_the_entropy_rule_has_mean_one_in_every_answer_and_is_never_negative(slope):
    known = facts(3)
    weights = token_rule_weights(known, WeightsConfig(rule="entropy", entropy_slope=slope)).double()
    for answer in range(known.num_sequences):
        assert weights[known.sequence_index == answer].mean() == pytest.approx(1.0, abs=1e-6)
    assert weights.min() >= 1.0 - slope - 1e-6


@pytest.mark.parametrize("rule", TOKEN_RULES)
@pytest.mark.parametrize("entropy", [0.0, -1e-6, 1e-9])
def test_a_policy_that_is_sure_of_everything_gets_finite_weights(rule, entropy):
    known = facts(entropy=[entropy] * 5, batch_entropy=[entropy] * 5, lengths=(4, 1))
    weights = token_rule_weights(known, WeightsConfig(rule=rule))
    assert weights.isfinite().all() and (weights >= 0).all()


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_no_tokens_weigh_nothing(rule):
    none = facts(entropy=[], batch_entropy=[], lengths=())
    assert token_rule_weights(none, WeightsConfig(rule=rule)).shape == (0,)


def test_another_rule_and_vectors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'constant'.*top_entropy"):
        token_rule_weights(facts(), WeightsConfig(rule="constant"))
    known = facts()
    with pytest.raises(ValueError, match="one value per token"):
        token_rule_weights(TokenFacts(**{**vars(known), "log_probs": known.log_probs[1:]}), WeightsConfig(rule="rsi_s"))


def test_the_check_of_the_configuration_knows_the_same_rules():
    assert set(check_method.TOKEN_RULES) == set(TOKEN_RULES)
