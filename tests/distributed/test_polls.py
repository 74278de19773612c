"""A rank with a reason to stop stops all of them, soon, at the same place, and nothing of what was begun is left."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from rest_megatron.config.schema import RolloutConfig
from rest_megatron.distributed.stop import wait_for
from rest_megatron.distributed.watch import Watch
from tests.distributed.cases import Layout
from tests.distributed.fake_faults import Fault
from tests.distributed.poll_cases import (
    broken_off,
    heard,
    named_wrongly,
    one_slow_rank,
    polled,
    scored,
    signalled,
    stopped_alone,
    uninterrupted,
    updated_around_a_stop,
    vllm_stopped,
)
from tests.distributed.vllm_cases import Scenario

OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
SOON = 6.0  # seconds, of machines that may be busy


@pytest.mark.parametrize(
    "world_size, plan, poll, reason",
    [
        (1, {0: (3, "SIGTERM")}, 3, "SIGTERM"),
        (2, {1: (2, "SIGUSR1")}, 2, "SIGUSR1"),
        (4, {2: (4, "SIGUSR1"), 3: (4, "SIGTERM")}, 4, "SIGUSR1"),
        (4, {0: (5, "SIGUSR1"), 3: (1, "SIGTERM")}, 1, "SIGTERM"),
    ],
)
def test_all_ranks_raise_at_the_same_poll_with_the_reason_of_the_first(pool, world_size, plan, poll, reason):
    assert pool.run(polled, world_size, plan) == [(poll, reason)] * world_size


def test_a_rank_hears_of_another_one_s_signal_without_a_poll(pool):
    for reason, seconds in pool.run(heard, 2):
        assert reason == "SIGUSR1" and seconds < SOON


@pytest.mark.parametrize("world_size", [1, 2])
def test_rank_zero_s_work_alone_ends_for_a_signal_to_any_rank(pool, world_size):
    for reason, seconds in pool.run(stopped_alone, world_size):
        assert reason == "SIGTERM" and 1.5 <= seconds < 1.5 + SOON


def test_waiting_for_rank_zero_has_an_end():
    with pytest.raises(dist.DistStoreError, match="turn was not set within 0:00:00.300000"):
        wait_for(dist.HashStore(), "turn", Watch(), timedelta(seconds=0.3))


def test_ranks_that_gloo_cannot_connect_are_told_what_to_set(pool):
    for error in pool.run(named_wrongly, 2):
        assert "gloo cannot connect the ranks by the CPU: " in error and "Set GLOO_SOCKET_IFNAME" in error


def test_a_slow_rank_is_no_hang(pool):
    assert pool.run(one_slow_rank, 2) == [0, 1]


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]
ROLLOUT = RolloutConfig(group_size=2, max_new_tokens=40, max_batch_size=4)
BATCHES = [Layout(), Layout(dp=2), Layout(tp=2, sp=True), Layout(pp=2), Layout(tp=2, pp=2, vpp=2)]


@pytest.fixture(scope="module")
def drawn(pool, tiny_model):
    """What one process draws that has no reason to stop."""
    return pool.run(broken_off, 1, tiny_model(), Layout(), PROMPTS, ROLLOUT, 10**9)[0]["groups"]


@pytest.mark.parametrize("layout", BATCHES, ids=str)
def test_the_sampler_breaks_off_within_a_few_tokens_and_keeps_nothing(pool, tiny_model, drawn, layout):
    results = pool.run(broken_off, layout.world_size, tiny_model(), layout, PROMPTS, ROLLOUT, 3)
    assert {result["reason"] for result in results} == {"SIGUSR1"}
    # The third look is after twice 16 tokens; other copies of the model draw on until they hear of it.
    assert results[-1]["draws"] == 32
    for result in results:
        assert [[s.token_ids for s in group] for group in result["groups"]] == [
            [s.token_ids for s in group] for group in drawn
        ]


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(tp=2), Layout(pp=2)], ids=str)
def test_a_signal_to_one_rank_soon_ends_the_drawing_of_all(pool, tiny_model, layout):
    rollout = RolloutConfig(group_size=1, max_new_tokens=450, max_batch_size=4)
    for result in pool.run(signalled, layout.world_size, tiny_model(), layout, PROMPTS, rollout):
        assert result["reason"] == "SIGUSR1"
        assert result["draws"] < 200 and result["seconds"] < 0.02 * 20 + 2 + SOON


UPDATES = [
    (Layout(max_tokens=32), "float32"),
    (Layout(dp=2, max_tokens=32), "float32"),
    (Layout(dp=2, max_tokens=32), "bfloat16"),
    (Layout(dp=2, max_tokens=32, deepspeed=OFFLOAD), "float32"),
    (Layout(dp=2, max_tokens=32, deepspeed=OFFLOAD), "bfloat16"),
    (Layout(tp=2, pp=2, sp=True), "bfloat16"),
]


@pytest.fixture(scope="module")
def reference(pool, tiny_model, answers):
    """`reference(layout, dtype)`: `uninterrupted` on every rank, as many updates as the test below completes."""

    made = {}

    def get(layout, dtype):
        key = (str(layout), dtype)
        if key not in made:
            path = tiny_model(tied=True, dtype=getattr(torch, dtype))
            args = (path, layout, answers, dtype, 3 if layout.pp > 1 else 5)
            made[key] = pool.run(uninterrupted, layout.world_size, *args)
        return made[key]

    return get


@pytest.mark.parametrize(
    "layout, dtype, measure",
    [pytest.param(*case, False, marks=[pytest.mark.slow] if i in (1, 3) else []) for i, case in enumerate(UPDATES)]
    + [(*case, True) for case in UPDATES[2:5:2]],
    ids=lambda value: str(value),
)
def test_an_update_that_is_broken_off_changes_nothing(pool, tiny_model, answers, reference, layout, dtype, measure):
    path = tiny_model(tied=True, dtype=getattr(torch, dtype))
    wanted = reference(layout, dtype)
    looks = wanted[0]["looks"]
    places = [1, 2] if layout.pp > 1 else [1, 2, looks // 2, looks]
    assert looks == places[-1] and len(set(places)) == len(places)
    args = (path, layout, answers, dtype, places, measure)
    for result, want in zip(pool.run(updated_around_a_stop, layout.world_size, *args), wanted, strict=True):
        assert result["reasons"] == ["SIGUSR1"] * len(places)
        for _, before, after in result["rounds"]:
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert result["final"] == want["final"]
        assert all(torch.equal(a, b) for a, b in zip(result["state"], want["state"], strict=True))


@pytest.mark.parametrize("world_size", [1, 2])
def test_scoring_ends_after_the_answer_at_hand_and_is_no_hang(pool, world_size):
    results = pool.run(scored, world_size)
    assert {reason for reason, _, _ in results} == {"SIGTERM"}
    assert 4 <= results[0][1] < 20 and all(seconds < 1.0 + SOON for _, _, seconds in results)


DP = Layout(dp=2)


def test_requests_to_a_server_that_does_not_answer_are_taken_back(pool, tiny_model, tmp_path):
    scenario = Scenario(faults=[Fault("generate", "hang", times=100)])
    for result in pool.run(vllm_stopped, 2, tiny_model(), DP, tmp_path, scenario, "generate"):
        assert result["reason"] == "SIGTERM" and result["seconds"] < 0.7 + SOON
        assert result["calls"] in ([], ["generate"] * result["prompts"])


def test_a_publish_is_not_begun(pool, tiny_model, tmp_path):
    for result in pool.run(vllm_stopped, 2, tiny_model(), DP, tmp_path, Scenario(), "publish"):
        assert result["reason"] == "SIGTERM" and result["calls"] == []
