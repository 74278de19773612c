"""Answers over data-parallel ranks: whole groups where that is even, cut where it pays."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rest_megatron.actor.dealing import CostModel, Work, deal, deal_costs, imbalance
from rest_megatron.config import load
from rest_megatron.types import Trajectory
from tests.tiny import SIZES

COSTS = [[], [5], [7, 7, 7, 7], [31, 2, 2, 2, 2, 30, 1], [1, 2, 3, 4, 5, 6, 7, 8, 9], [16] * 5 + [3] * 11]
TOKENS = CostModel(row=0, pair=0, learner=4)
QWEN3 = CostModel(row=0.22, pair=8.2e-5, learner=4)


def group(number: int, prompt: int, *responses: int, learns=True) -> list[Work]:
    return [Work((number,) * prompt, tokens, tokens, learns) for tokens in responses]


def ragged(groups: int, size: int, prompt: int, response: int, seed=0, learns=True) -> list[Work]:
    """Groups of lognormal lengths of these means and sigma 0.5; learns=False: a third teaches nothing."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.empty(groups).log_normal_(-0.125, 0.5, generator=generator) * prompt
    responses = torch.empty(groups, size).log_normal_(-0.125, 0.5, generator=generator) * response
    return [
        work
        for number, (length, own) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True))
        for work in group(number, 1 + int(length), *(1 + int(x) for x in own), learns=learns or number % 3 > 0)
    ]


def ranks_of(works, hands) -> dict[tuple, set[int]]:
    """Which ranks compute each prompt."""
    found = {work.prompt_ids: set() for work in works}
    for rank, hand in enumerate(hands):
        for i in hand:
            found[works[i].prompt_ids].add(rank)
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("costs", COSTS, ids=str)
def test_what_cannot_be_cut_is_dealt_evenly(costs, num_ranks):
    hands = deal_costs(costs, num_ranks)
    assert len(hands) == num_ranks
    assert sorted(i for hand in hands for i in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in hands)
    totals = [sum(costs[i] for i in hand) for hand in hands]
    assert max(totals) - min(totals) <= max(costs, default=0)


def test_the_dearest_goes_first_to_the_emptiest():
    assert deal_costs([3, 9, 5, 5, 1], 2) == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("num_ranks", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("shape", [(0, 1, 9, 9), (1, 1, 9, 9), (1, 40, 30, 9), (7, 3, 9, 30), (20, 8, 70, 10)], ids=str)
def test_every_answer_is_dealt_once_and_the_fullest_rank_has_no_more_than_with_whole_groups(shape, num_ranks):
    works = ragged(*shape, learns=False)
    hands = deal(works, num_ranks, QWEN3)
    assert len(hands) == num_ranks
    assert sorted(i for hand in hands for i in hand) == list(range(len(works)))
    assert all(hand == sorted(hand) for hand in hands)
    again = [work._replace(prompt_ids=list(work.prompt_ids)) for work in works]
    assert deal(again, num_ranks, QWEN3) == hands
    costs = [QWEN3.rank([works[i] for i in hand]) for hand in hands]
    groups = [range(i, i + shape[1]) for i in range(0, len(works), shape[1])]
    whole = deal_costs([QWEN3.rank([works[i] for i in own]) for own in groups], num_ranks)
    together = [QWEN3.rank([works[i] for g in hand for i in groups[g]]) for hand in whole]
    assert max(costs) <= max(together)


def test_groups_stay_whole_where_that_is_even():
    works = [work for number in range(12) for work in group(number, 50, 3, 9, 6)]
    hands = deal(works, 4, TOKENS)
    assert [len(hand) for hand in hands] == [9] * 4
    assert all(len(ranks) == 1 for ranks in ranks_of(works, hands).values())


def test_equal_prompts_of_different_groups_are_one_group():
    works = group(0, 50, 3, 3) + group(1, 50, 3, 3) + group(0, 50, 3) + group(1, 50, 3)
    assert deal(works, 2, TOKENS) == [[0, 1, 4], [2, 3, 5]]


@pytest.mark.parametrize("num_ranks", [2, 4, 7])
def test_a_group_that_is_all_there_is_is_cut_evenly(num_ranks):
    works = group(0, 100, *[10] * 56)
    hands = deal(works, num_ranks, TOKENS)
    assert all(hands) and imbalance(works, [hands], TOKENS) <= 1.15  # at most by two answers of 10


def test_a_large_group_leaves_its_last_answers_to_another_rank():
    works = group(0, 20, *[10] * 8) + group(1, 20, 10, 10)
    hands = deal(works, 2, TOKENS)
    assert hands == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]  # 20 + 60 and 20 + 20 + 20 + 20: 80 each, before 100 and 40


def test_nothing_is_cut_where_the_fullest_rank_would_not_become_less_full():
    works = group(0, 110, 1, 1) + group(1, 100, 1, 1) + group(2, 100, 1, 1)
    assert deal(works, 2, TOKENS) == [[0, 1], [2, 3, 4, 5]]


def test_an_answer_that_learns_counts_four_times():
    works = [work for number in range(5) for work in group(number, 40, 10, learns=number == 0)]
    assert deal(works, 2, TOKENS) == [[0], [1, 2, 3, 4]]
    assert deal([work._replace(learns=True) for work in works], 2, TOKENS) == [[0, 2, 4], [1, 3]]


def test_the_cost_of_a_rank_has_each_prompt_once_and_each_answer_with_its_attention_to_it():
    cost = CostModel(row=0.5, pair=0.02, learner=4)
    silent = Work((1,) * 20, 10, 4, learns=False)
    prompt, answer = 20 + 4, 10 + 2 + 5  # 0.02 of 20 x 20 / 2, and of 20 x 10 + 10 x 10 / 2
    assert cost.rank([silent]) == prompt + answer
    assert cost.rank([silent, silent]) == prompt + 2 * answer
    assert cost.rank([silent, silent._replace(learns=True)]) == 4 * prompt + 5 * answer
    assert cost.rank([silent, silent._replace(prompt_ids=(2,) * 20)]) == 2 * (prompt + answer)


def test_a_dialogue_costs_all_of_its_tokens_and_the_logits_of_its_targets():
    assert Work.of(Trajectory((1, 2), (3, 4, 5), (True, False, True))) == ((1, 2), 3, 2, True)


@pytest.mark.parametrize(
    "hf", [Qwen3Config(**SIZES, head_dim=32), Qwen2Config(**SIZES), LlamaConfig(**SIZES)], ids=lambda hf: hf.model_type
)
def test_the_unit_of_cost_is_the_model_s_layers(hf):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf)
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    found = CostModel.of(hf, load(()))
    assert found.row == pytest.approx(model.lm_head.weight.numel() / layers)
    width = model.model.layers[0].self_attn.o_proj.in_features
    assert found.pair == pytest.approx(2 * hf.num_hidden_layers * width / layers)


@pytest.mark.parametrize(
    "overrides, learner, other",
    [
        ([], 4, 1),
        (["train.epochs=2"], 7, 1),
        (["megatron={recompute_granularity: full, recompute_num_layers: 1}"], 5, 1),
        (["algorithm.kl_coef=0.1"], 5, 2),
        (["algorithm.old_log_probs=update"], 3, 1),
    ],
)
def test_passes_over_an_answer_are_those_of_the_step(overrides, learner, other):
    found = CostModel.of(LlamaConfig(**SIZES), load((), overrides))
    assert (found.learner, found.other) == (learner, other)


def test_imbalance_is_the_fullest_rank_over_the_mean_mini_batch_by_mini_batch():
    works = [work for number in range(4) for work in group(number, 40, 10)]
    assert imbalance(works, [[[0, 1], [2, 3]]], TOKENS) == 1.0
    assert imbalance(works, [[[0, 1, 2], [3]]], TOKENS) == 1.5
    assert imbalance(works, [[[0], [1]], [[2, 3], []]], TOKENS) == 1.5
    assert imbalance(works, [[[0, 1, 2, 3]]], TOKENS) == imbalance([], [], TOKENS) == imbalance([], [[[]]], TOKENS) == 1


@pytest.mark.parametrize("seed", range(4))
def test_sixteen_ranks_compute_less_than_a_third_of_the_tokens_that_every_answer_with_its_prompt_has(seed):
    works = ragged(64, 8, prompt=700, response=100, seed=seed)
    hands = deal(works, 16, QWEN3)
    computed = [
        sum(map(len, {works[i].prompt_ids for i in hand})) + sum(works[i].response_tokens for i in hand)
        for hand in hands
    ]
    plain = sum(len(work.prompt_ids) + work.response_tokens for work in works) / 16
    assert max(computed) <= 0.30 * plain
