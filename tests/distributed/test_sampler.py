"""The in-process sampler: the same answers on every layout, with the probabilities Hugging Face gives them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from rest_megatron.config.schema import RolloutConfig
from rest_megatron.errors import NonFiniteError
from rest_megatron.rollout.engine import number_requests
from rest_megatron.rollout.sampler import Sampler
from rest_megatron.types import Request
from tests.distributed.cases import Layout, sampled
from tests.tiny import VOCAB, relative_error

ROLLOUT = RolloutConfig(group_size=3, max_new_tokens=12, temperature=0.7, max_batch_size=6)
STOP = list(range(0, VOCAB, 7))
LAYOUTS = [Layout(), Layout(tp=2, sp=True), Layout(pp=2, dp=2), Layout(tp=2, pp=2, sp=True), Layout(tp=2, pp=2, vpp=2)]


def make_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, VOCAB, (n,), generator=generator).tolist() for n in (5, 1, 9, 14, 5)]


def make_requests() -> list[Request]:
    return number_requests(make_prompts(), ROLLOUT.max_new_tokens)


@pytest.fixture(scope="module")
def expected(pool, tiny_model):
    """The draws of one process, by tied embedding or not."""
    return {
        tied: pool.run(sampled, 1, tiny_model(tied=tied), LAYOUTS[0], make_requests(), ROLLOUT, STOP)[0]
        for tied in (False, True)
    }


@pytest.fixture
def bar(bars):
    """A temperature below 1 enlarges the noise of the logits."""
    return {"sampled log_probs": bars()["log_probs"] / ROLLOUT.temperature}


# Tied embeddings on the pipeline that parts their copies, and on all with --slow.
CASES = [
    *((layout, False) for layout in LAYOUTS[1:]),
    *(pytest.param(layout, True, marks=pytest.mark.slow) for layout in LAYOUTS[1:-1]),
    (LAYOUTS[-1], True),
]


@pytest.mark.parametrize("layout, tied", CASES, ids=str)
def test_every_layout_draws_the_same_tokens(pool, tiny_model, expected, bar, within, layout, tied):
    results = pool.run(sampled, layout.world_size, tiny_model(tied=tied), layout, make_requests(), ROLLOUT, STOP)
    want = expected[tied]["samples"]
    for result in results:
        assert [s.token_ids for s in result["samples"]] == [s.token_ids for s in want]
        assert [s.finish_reason for s in result["samples"]] == [s.finish_reason for s in want]
        assert result["sequence_parallel"] is layout.sp
        ours = torch.tensor([x for s in result["samples"] for x in s.log_probs])
        within({"sampled log_probs": relative_error(ours, result["log_probs"])}, bar)


@pytest.mark.parametrize("tied", [False, True])
def test_log_probs_are_hugging_faces_at_the_sampling_temperature(expected, bar, within, tiny_model, tied):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tied=tied), dtype=torch.float64)
    samples = expected[tied]["samples"]
    with torch.no_grad():
        table = [
            model(torch.tensor([[*s.prompt_ids, *s.token_ids]]))
            .logits[0, len(s.prompt_ids) - 1 : -1]
            .div(ROLLOUT.temperature)
            .log_softmax(-1)
            for s in samples
        ]
    want = torch.cat(
        [t[torch.arange(len(s.token_ids)), list(s.token_ids)] for t, s in zip(table, samples, strict=True)]
    )
    ours = torch.tensor([x for s in samples for x in s.log_probs])
    within({"sampled log_probs": relative_error(ours, want)}, bar)


def test_an_answer_ends_at_its_first_stop_token_or_at_the_limit(expected):
    samples = expected[False]["samples"]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for sample in samples:
        stopped = sample.finish_reason == "stop"
        assert (sample.token_ids[-1] in STOP) is stopped
        assert not set(sample.token_ids[:-1]) & set(STOP)
        assert stopped or len(sample.token_ids) == ROLLOUT.max_new_tokens
        assert sample.weight_version == 7


def test_the_same_seed_draws_the_same_answers_and_groups_differ_within(expected):
    assert expected[False]["repeats"]
    samples = expected[False]["samples"]
    groups = [samples[i : i + 3] for i in range(0, len(samples), 3)]
    assert any(len({s.token_ids for s in group}) == 3 for group in groups)
    assert [g[0].prompt_ids for g in groups] == [tuple(p) for p in make_prompts()]


def test_draws_do_not_depend_on_the_batch_size(pool, tiny_model, expected):
    small = RolloutConfig(group_size=3, max_new_tokens=12, temperature=0.7, max_batch_size=1)
    result = pool.run(sampled, 1, tiny_model(), Layout(), make_requests(), small, STOP)[0]
    assert [s.token_ids for s in result["samples"]] == [s.token_ids for s in expected[False]["samples"]]


EQUAL = [0, 3, 0, 2, 3]


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, pp=2, sp=True), Layout(tp=2, pp=2, vpp=2)], ids=str)
@pytest.mark.parametrize("group_size", [1, 3])
def test_equal_prompts_are_read_once_and_answered_as_if_each_were_alone(
    pool, tiny_model, bar, within, layout, group_size
):
    requests = number_requests([make_prompts()[i] for i in EQUAL], ROLLOUT.max_new_tokens)
    alone, together = (replace(ROLLOUT, group_size=group_size, max_batch_size=group_size * n) for n in (1, len(EQUAL)))
    want = pool.run(sampled, 1, tiny_model(), Layout(), requests, alone, STOP)[0]
    assert [rows for tokens, rows in want["shapes"] if tokens > 1] == [1] * len(EQUAL)
    for result in pool.run(sampled, layout.world_size, tiny_model(), layout, requests, together, STOP):
        assert [rows for tokens, rows in result["shapes"] if tokens > 1] == [len(set(EQUAL))]
        assert [s.token_ids for s in result["samples"]] == [s.token_ids for s in want["samples"]]
        ours, theirs = (torch.tensor([x for s in r["samples"] for x in s.log_probs]) for r in (result, want))
        within({"sampled log_probs": relative_error(ours, theirs)}, bar)


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2, pp=2)], ids=str)
def test_a_prompt_s_own_limit_cuts_its_answers_and_changes_no_draw(pool, tiny_model, expected, layout):
    limits = [3, 12, 1, 7, 12]
    requests = [replace(request, max_new_tokens=limit) for request, limit in zip(make_requests(), limits, strict=True)]
    for result in pool.run(sampled, layout.world_size, tiny_model(), layout, requests, ROLLOUT, STOP):
        for number, (sample, whole) in enumerate(zip(result["samples"], expected[False]["samples"], strict=True)):
            limit = limits[number // ROLLOUT.group_size]
            assert sample.token_ids == whole.token_ids[:limit]
            assert sample.finish_reason == ("stop" if sample.token_ids[-1] in STOP else "length")


@pytest.mark.parametrize("layout", [Layout(), Layout(pp=2, dp=2)], ids=str)
def test_a_prompt_s_number_decides_its_draws_whichever_others_are_asked(pool, tiny_model, expected, layout):
    numbers = [3, 1]
    requests = [make_requests()[number] for number in numbers]
    want = [s.token_ids for n in numbers for s in expected[False]["samples"][3 * n : 3 * n + 3]]
    for result in pool.run(sampled, layout.world_size, tiny_model(), layout, requests, ROLLOUT, STOP):
        assert [s.token_ids for s in result["samples"]] == want


@pytest.mark.parametrize("limit", [0, 13])
def test_limits_that_do_not_fit_the_configuration_are_refused(limit):
    sampler = Sampler(None, None, ROLLOUT, STOP)
    with pytest.raises(ValueError, match=rf"max_new_tokens \[3, {limit}\] must be 1 to 12"):
        sampler.generate([Request([1], 3, 0), Request([1], limit, 1)], group_size=3, seed=5)


def test_logits_that_are_not_finite_end_the_run(monkeypatch):
    alone = SimpleNamespace(
        device=torch.device("cpu"),
        tp_group=None,
        broadcast_from_last_stage=lambda choice: choice,
        block_must_stop=lambda: False,
    )
    sampler = Sampler(None, alone, ROLLOUT, STOP)
    logits = torch.zeros(2, VOCAB).index_fill(0, torch.tensor([1]), torch.nan)
    monkeypatch.setattr(sampler, "_forward", lambda *_: logits)
    with pytest.raises(NonFiniteError, match="logits are not finite after 0 optimizer steps"):
        sampler._decode(number_requests([[1], [2]], 3), torch.rand(2, 12), [])
