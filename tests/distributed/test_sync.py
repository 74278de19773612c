"""The publisher against a fake vLLM server: what is pushed, in which order, and that answers come from it."""

import pytest
import torch

from tests.distributed.cases import Layout, merged
from tests.distributed.published import PROBED, PUSH, largest_error
from tests.distributed.vllm_cases import (
    BROKEN_WRITERS,
    GROUP_SIZE,
    PROMPTS,
    STOP,
    badly_written,
    followed,
    slept,
)

UNTIED = [Layout(), Layout(tp=2, sp=True), Layout(tp=2, pp=2)]
TIED = [Layout(tp=2, dp=2), Layout(pp=2), Layout(pp=2, vpp=2)]
CASES = [
    pytest.param(layout, tied, id=f"{layout}-{tied}", marks=[] if layout in usual else pytest.mark.slow)
    for tied, usual in ((False, UNTIED), (True, TIED))
    for layout in (*UNTIED, *TIED)
]


@pytest.mark.parametrize("layout, tied", CASES)
def test_after_every_publish_answers_are_sampled_from_the_actors_weights(
    pool, tiny_model, answers, tmp_path, layout, tied
):
    model = tiny_model(tied=tied)
    results = pool.run(followed, layout.world_size, model, layout, answers, tmp_path)
    assert [r["error"] for r in results] == [""] * len(results)
    for number, version in enumerate((0, 2)):
        rounds = [result["rounds"][number] for result in results]
        weights = merged(rounds, "weights")
        samples = rounds[0]["samples"]
        assert len(samples) == GROUP_SIZE * len(PROMPTS)
        assert all(r["samples"] == samples for r in rounds), "the same answers on every rank"
        assert rounds[0]["again"] == samples, "the same seed gives the same answers"
        assert {sample.weight_version for sample in samples} == {version}
        assert largest_error(model, weights, samples) < 1e-5
        pushed = rounds[0]["pushed"]
        assert pushed.keys() == weights.keys()
        assert all(torch.equal(pushed[name], weights[name]) for name in weights)
    first, second = (merged([r["rounds"][i] for r in results], "weights") for i in (0, 1))
    assert largest_error(model, first, results[0]["rounds"][1]["samples"]) > 1e-3, "the update shows"
    assert results[0]["calls"].count("/update_weights") > 6, "several files"
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert list(tmp_path.iterdir()) == []


def test_answers_end_as_the_engines_protocol_says(pool, tiny_model, answers, tmp_path):
    (result,) = pool.run(followed, 1, tiny_model(), Layout(), answers, tmp_path)
    samples = result["rounds"][0]["samples"]
    assert [s.prompt_ids for s in samples] == [tuple(p) for p in PROMPTS for _ in range(GROUP_SIZE)]
    assert {s.finish_reason for s in samples} == {"stop", "length"}
    for sample in samples:
        assert (sample.token_ids[-1] in STOP) is (sample.finish_reason == "stop")
        assert len(sample.log_probs) == len(sample.token_ids)
    assert len({s.token_ids for s in samples}) == len(samples), "answers of a group differ"
    lengths = [{len(s.token_ids) for s in group if s.finish_reason == "length"} for group in result["limited"]]
    assert lengths == [{1}, {2}, {3}], "each prompt has a limit of its own"
    groups = [result["rounds"][1]["samples"][GROUP_SIZE * n : GROUP_SIZE * (n + 1)] for n in (2, 0)]
    assert result["numbered"] == groups, "a prompt draws by its number"


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2)], ids=str)
def test_a_stale_prefix_cache_is_found_by_the_next_probe(pool, tiny_model, answers, tmp_path, layout):
    results = pool.run(followed, layout.world_size, tiny_model(), layout, answers, tmp_path, ("stale_prefix",))
    for result in results:
        assert len(result["rounds"]) == 1, "the first update is served well"
        assert "does not sample from the actor's weights" in result["error"]


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2)], ids=str)
def test_a_server_that_slept_gets_the_same_version_again_between_waking_weights_and_cache(
    pool, tiny_model, tmp_path, layout
):
    model = tiny_model()
    result = pool.run(slept, layout.world_size, model, layout, tmp_path, True)[0]
    awake = [*PUSH, *PROBED]
    woken = ["/wake_up", *PUSH[:7], "/wake_up", *PUSH[7:], *PROBED]
    assert result["calls"] == [awake, [], ["/sleep"], [], woken]
    assert len(result["samples"]) == GROUP_SIZE * len(PROMPTS)


def test_a_server_that_cannot_sleep_is_left_alone(pool, tiny_model, tmp_path):
    result = pool.run(slept, 1, tiny_model(), Layout(), tmp_path, False)[0]
    assert result["calls"] == [[*PUSH, *PROBED], [], [], [], []]


SAID = {
    "missing": "lack tensors (1 of 47): model.norm.weight",
    "duplicate": "hold model.embed_tokens.weight twice, the second time in model-00002-of-00002.safetensors",
    "misshapen": "model.norm.weight is (63,), config.json wants (64,)",
    "truncated": "cannot be read back",
    "disk full": "No space left on device",
    "other dtype": "as BF16, must be F32",
}


@pytest.mark.parametrize("layout, bad_rank", [(Layout(pp=2), 1), (Layout(tp=2, pp=2), 2)], ids=str)
def test_files_that_are_not_the_model_are_refused_on_every_rank_before_anything_is_sent(
    pool, tiny_model, tmp_path, layout, bad_rank
):
    results = pool.run(badly_written, layout.world_size, tiny_model(), layout, tmp_path, bad_rank)
    for name in BROKEN_WRITERS:
        errors = {result[name]["error"] for result in results}
        assert len(errors) == 1, f"{name}: all ranks say the same"
        assert SAID[name] in errors.pop(), name
        assert results[0][name]["calls"] == [], name
        assert results[0][name]["left"] == [], name
    assert {result["good"]["error"] for result in results} == {""}
    assert results[0]["good"]["calls"][:2] == PUSH[:2]
