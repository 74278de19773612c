"""`rest_megatron.method.weights`: entropies to region weights to token weights."""

import json
import math

import pytest
import torch

from rest_megatron.config.keys import keys
from rest_megatron.config.schema import WeightsConfig
from rest_megatron.method.feedback import FeedbackState
from rest_megatron.method.token_rules import TOKEN_RULES
from rest_megatron.method.weights import (
    RULES,
    WeightState,
    region_means_by_response,
    region_sums,
    region_switches,
    region_weights,
    require_finite,
    token_statistic,
    token_weights,
    update_running_mean,
)

NAN = math.nan
WIDE = {"clamp_min": 1e-12, "clamp_max": 1e12}


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_entropy_sums_and_counts_by_hand():
    entropy = torch.tensor([0.5, 1.0, 2.0, 0.25, 4.0])
    sums, counts = region_sums(entropy, torch.tensor([0, 3, 3, 0, 1]))
    assert sums.tolist() == [0.75, 4.0, 0.0, 3.0]
    assert counts.tolist() == [2.0, 1.0, 0.0, 2.0]
    assert sums.dtype == counts.dtype == torch.float64


def test_entropy_sums_add_up_over_any_cut_of_the_batch():
    entropy, regions = torch.rand(1000), torch.randint(0, 4, (1000,))
    whole = region_sums(entropy, regions)
    parts = [region_sums(e, r) for e, r in zip(entropy.split(170), regions.split(170), strict=True)]
    torch.testing.assert_close(sum(sums for sums, _ in parts), whole[0], rtol=1e-12, atol=0)
    assert torch.equal(sum(counts for _, counts in parts), whole[1])


def test_entropy_sums_of_no_tokens_are_zero():
    sums, counts = region_sums(torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert sums.tolist() == counts.tolist() == [0.0] * 4


def test_entropy_sums_refuse_vectors_of_different_length():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        region_sums(torch.rand(3), torch.tensor([0, 1]))


def moved(*steps: tuple, state: WeightState | None = None, **settings) -> WeightState:
    """The state after steps of (sums, counts), of a new run where none is given."""
    state = state or WeightState()
    for sums, counts in steps:
        state = update_running_mean(state, vector(*sums), vector(*counts), WeightsConfig(**settings))
    return state


@pytest.mark.parametrize("freeze_after", [0, 3])
def test_running_means_start_at_the_first_mean_and_keep_absent_regions(freeze_after):
    state = moved(((2, 0, 6, 0), (4, 0, 3, 0)), freeze_after=freeze_after)
    assert state.running_mean == pytest.approx((0.5, NAN, 2.0, NAN), nan_ok=True) and state.steps == (1, 0, 1, 0)
    state = moved(((0, 5, 0, 0), (0, 10, 0, 0)), state=state, freeze_after=freeze_after)
    assert state.running_mean == pytest.approx((0.5, 0.5, 2.0, NAN), nan_ok=True) and state.steps == (1, 1, 1, 0)


def test_a_mean_is_that_of_the_first_steps_in_which_its_region_was_seen_and_then_stands_still():
    ones = (1, 1, 1, 1)
    steps = [((1, 0, 4, 0), (1, 0, 1, 0)), ((2, 5, 4, 3), ones), ((9, 5, 4, 4), ones), ((9, 8, 4, 7), ones)]
    state = moved(*steps, freeze_after=2)
    assert state.running_mean == (1.5, 5.0, 4.0, 3.5)
    later = moved(((0, 9, 9, 9), (9, 0, 9, 9)), state=state, freeze_after=2)
    assert later.running_mean == state.running_mean and state.steps == (4, 3, 4, 3) and later.steps == (5, 3, 5, 4)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_moving_mean_keeps_its_share_at_each_step(momentum):
    state = moved(((1, 2, 3, 4), (1, 1, 1, 1)), ((2, 2, 8, 0), (1, 2, 1, 0)), freeze_after=0, momentum=momentum)
    expected = [momentum * old + (1 - momentum) * new for old, new in ((1, 2), (2, 1), (3, 8))]
    assert state.running_mean == pytest.approx((*expected, 4.0), rel=1e-15)


def test_the_mean_of_a_run_begun_by_an_older_version_moves_on():
    older = WeightState.from_dict({"running_mean": [1.0] * 4, "feedback": FeedbackState().to_dict()})
    state = moved(((2, 2, 2, 2), (1, 1, 1, 1)), state=older, freeze_after=3, momentum=0.5)
    assert state.running_mean == (1.5,) * 4 and WeightState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_entropies_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        moved(((1, bad, 1, 1), (1, 1, 1, 1)))


@pytest.mark.parametrize(
    "rule, raw",
    [
        ("score_bound", lambda h: 1 / (1 - math.exp(-h))),
        ("inverse_entropy", lambda h: 1 / h),
        ("collision", lambda beta: 1 / beta),
        ("lm_head", lambda beta: 1 / beta),
        ("constant", lambda h: 1.0),
    ],
)
def test_rules_are_normalised_to_mean_one_over_the_regions_seen(rule, raw):
    entropies = [0.05, 0.4, 1.5]
    expected = [raw(h) for h in entropies]
    mean = sum(expected) / 3
    weights = region_weights(vector(*entropies, NAN), WeightsConfig(rule=rule, **WIDE))
    torch.testing.assert_close(weights, vector(*[w / mean for w in expected], 1.0), rtol=1e-12, atol=0)


def test_weights_are_clamped_after_they_are_normalised():
    weights = region_weights(vector(0.01, 1.0, 1.0, 1.0), WeightsConfig(rule="inverse_entropy"))
    # raw 100, 1, 1, 1; mean 25.75
    assert weights.tolist() == [2.0, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "entropies", [(0.0, 0.0, 0.0, 0.0), (0.0, 0.5, NAN, 12.0), (-1e-9, 1e-30, 0.1, 0.1), (NAN,) * 4]
)
def test_weights_are_finite_and_within_the_clamp_at_the_extremes(rule, entropies):
    weights = region_weights(vector(*entropies), WeightsConfig(rule=rule))
    assert torch.isfinite(weights).all()
    assert ((weights >= 0.3) & (weights <= 2.0)).all()
    assert all(w == 1.0 for w, h in zip(weights.tolist(), entropies, strict=True) if math.isnan(h))


def test_a_surer_region_weighs_more():
    weights = region_weights(vector(0.2, 0.5, 1.0, 2.0), WeightsConfig(**WIDE))
    assert (weights.diff() < 0).all()


def test_token_weights_by_hand():
    weights = token_weights(
        vector(1.0, 2.0, 0.5, 1.5),
        regions=torch.tensor([0, 1, 2, 3, 3]),
        sequence_index=torch.tensor([0, 0, 1, 0, 1]),
        num_sequences=2,
    )
    torch.testing.assert_close(weights, torch.tensor([1 / 1.5, 2 / 1.5, 0.5, 1.0, 1.5]), rtol=1e-6, atol=0)
    assert weights.dtype == torch.float32


def test_token_weights_have_mean_one_in_every_sequence():
    generator = torch.Generator().manual_seed(0)
    sequence_index = torch.randint(0, 40, (5000,), generator=generator)  # in any order, some may be empty
    regions = torch.randint(0, 4, (5000,), generator=generator)
    weights = token_weights(vector(0.3, 2.0, 1.1, 0.7), regions, sequence_index, 41).double()
    for sequence in sequence_index.unique():
        assert abs(weights[sequence_index == sequence].mean().item() - 1.0) < 1e-6
    assert (weights > 0).all()


def test_equal_region_weights_give_weight_one():
    weights = token_weights(vector(1, 1, 1, 1), torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.int64), 1)
    torch.testing.assert_close(weights, torch.ones(4), rtol=0, atol=1e-6)


def test_token_weights_of_no_tokens():
    empty = torch.empty(0, dtype=torch.int64)
    assert token_weights(vector(1, 1, 1, 1), empty, empty, 0).shape == (0,)


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("score_bound", [0.5, 2.0]),
        ("inverse_entropy", [0.5, 2.0]),
        ("collision", [0.25, 0.75]),
        ("lm_head", [2.5, 3.0]),
        ("constant", [1.0, 1.0]),
    ],
)
def test_the_statistic_of_a_token_by_hand(rule, expected):
    statistic = token_statistic(rule, torch.tensor([0.5, 2.0]), torch.tensor([0.75, 0.25]), torch.tensor([10.0, 4.0]))
    assert statistic.tolist() == expected
    assert statistic.dtype == torch.float64


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_reads_what_its_row_names_and_nothing_else(rule):
    measured = {"entropy": 0.5, "collision": 0.75, "hidden_norm_squared": 10.0}
    reference_value = token_statistic(rule, *(torch.tensor([x]) for x in measured.values()))
    for name in measured:
        changed = {**measured, name: NAN}
        value = token_statistic(rule, *(torch.tensor([x]) for x in changed.values()))
        assert value.isnan().item() if name in RULES[rule].reads else torch.equal(value, reference_value), name


def test_the_configuration_offers_the_rules_of_the_table_and_gives_their_formulas():
    key = keys()["weights.rule"]
    assert set(key.choices) == {*RULES, *TOKEN_RULES, "reference"}
    for name, rule in {**RULES, **TOKEN_RULES}.items():
        assert f"{name} {rule.formula}" in key.help


@pytest.mark.parametrize("rule", ["reference", "entropy"])
def test_a_rule_without_statistics_is_refused(rule):
    with pytest.raises(ValueError, match=f"'{rule}'"):
        token_statistic(rule, torch.ones(1), torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=f"'{rule}'"):
        region_weights(vector(1, 1, 1, 1), WeightsConfig(rule=rule))


@pytest.mark.parametrize("rule", ["inverse_entropy", "collision", "lm_head"])
@pytest.mark.parametrize("scale", [1e-3, 7.0, 4096.0])
def test_only_ratios_of_the_statistic_matter(rule, scale):
    statistic = vector(0.02, 0.4, 1.5, NAN)
    settings = WeightsConfig(rule=rule)
    torch.testing.assert_close(region_weights(scale * statistic, settings), region_weights(statistic, settings))


def test_response_means_by_hand():
    means = region_means_by_response(
        torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]),
        regions=torch.tensor([0, 0, 3, 1, 0]),
        sequence_index=torch.tensor([0, 0, 0, 2, 2]),
        num_sequences=3,
    )
    expected = torch.stack([vector(2, NAN, NAN, 5), vector(NAN, NAN, NAN, NAN), vector(9, 7, NAN, NAN)])
    torch.testing.assert_close(means, expected, equal_nan=True)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_sums_that_are_not_finite_are_refused(bad):
    require_finite(vector(0, 1, 2, 3))
    with pytest.raises(ValueError, match="not finite"):
        require_finite(vector(0, 1, bad, 3))


@pytest.mark.parametrize("rule", RULES)
def test_the_mean_of_one_response_is_the_mean_of_a_batch_of_it(rule):
    generator = torch.Generator().manual_seed(0)
    values, regions = torch.rand(50, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    index, settings = torch.zeros(50, dtype=torch.int64), WeightsConfig(rule=rule)
    alone = region_weights(region_means_by_response(values, regions, index, 1), settings)
    batch = region_weights(vector(*moved(region_sums(values, regions)).running_mean), settings)
    torch.testing.assert_close(alone, batch[None])
    assert torch.equal(token_weights(alone, regions, index, 1), token_weights(batch, regions, index, 1))


def test_each_response_is_normalised_and_clamped_by_itself():
    rows = [vector(0.01, 1.0, 1.0, 1.0), vector(NAN, 0.5, NAN, 0.1), vector(NAN, NAN, NAN, NAN)]
    settings = WeightsConfig(rule="inverse_entropy")
    together = region_weights(torch.stack(rows), settings)
    assert together.dtype == torch.float64
    for row, weights in zip(rows, together, strict=True):
        torch.testing.assert_close(weights, region_weights(row, settings))


def test_token_weights_of_each_response_by_hand():
    weights = token_weights(
        torch.stack([vector(1, 3, 1, 1), vector(2, 1, 6, 1)]),
        regions=torch.tensor([0, 0, 1, 2]),
        sequence_index=torch.tensor([0, 1, 0, 1]),
        num_sequences=2,
    )
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 1.5, 1.5]))


@pytest.mark.parametrize("region, name", enumerate(["use_format", "use_tool_name", "use_parameters", "use_cot"]))
def test_a_region_switched_off_weighs_nothing_and_the_others_fill_the_mean(region, name):
    switches = region_switches(WeightsConfig(**{name: False}))
    assert switches.tolist() == [float(r != region) for r in range(4)]
    regions = torch.arange(4).repeat(3)
    weights = token_weights(vector(1, 2, 0.5, 1.5) * switches, regions, torch.zeros(12, dtype=torch.int64), 1)
    assert (weights[regions == region] == 0).all()
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-6)


def test_a_response_without_a_region_in_use_gets_zeros():
    weights = token_weights(vector(1, 1, 1, 0), torch.tensor([3, 3, 0, 3]), torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 2.0, 0.0]))


@pytest.mark.parametrize("mean", [None, (0.1, NAN, 2 / 3, 1e-300)])
def test_the_state_comes_back_from_json_bit_for_bit(mean):
    state = WeightState(mean, feedback=FeedbackState(accuracy=(0.1, None, 1 / 3), saturation=(0.0, 0.3, 1.0)))
    again = WeightState.from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))
    assert repr(again) == repr(state)
