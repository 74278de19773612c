"""A training run on dialogues with tools: the real sampler, and the same numbers on TP 2 x PP 2 as on one process."""

import json

import pytest
from transformers import AutoTokenizer

from rest_megatron.data.tokens import token_bytes
from rest_megatron.observe.response import read_response
from rest_megatron.rollout.sampler import Sampler
from tests.distributed.talkative import make_talkative_run
from tests.distributed.training_cases import ran, read_metrics
from tests.distributed.training_runs import CUT, same
from tests.paths import EXAMPLES


@pytest.fixture(scope="module")
def runs(pool, tmp_path_factory):
    """The runs' directories on one process and on four."""
    found = {}
    for name, world_size, layout in (("one", 1, []), ("cut", 4, CUT), ("data", 2, [])):
        directory = tmp_path_factory.mktemp(name)
        pool.run(ran, world_size, "train", [], [*make_talkative_run(directory), *layout], Sampler)
        found[name] = directory / "run"
    return found


def dumped(run_dir):
    return [json.loads(line) for step in (1, 2) for line in (run_dir / f"rollouts/step-{step}.jsonl").open()]


@pytest.mark.parametrize("layout", ["cut", "data"])
def test_dialogues_train_alike_on_every_layout(runs, layout):
    same(read_metrics(runs[layout]), read_metrics(runs["one"]))
    assert [row["ids"] for row in dumped(runs[layout])] == [row["ids"] for row in dumped(runs["one"])]


def test_the_weights_of_tao_rl_rise_with_entropy_after_a_tool_s_result_alike_on_every_layout(pool, tmp_path):
    found = []
    for name, world_size in (("one", 1), ("data", 2)):
        (tmp_path / name).mkdir()
        words = [*make_talkative_run(tmp_path / name), "weights.entropy_slope=0.2"]
        pool.run(ran, world_size, "train", [EXAMPLES / "baselines/tao_rl.yaml"], words, Sampler)
        found.append(dumped(tmp_path / name / "run"))
    later = []
    for alone, cut in zip(*found, strict=True):
        assert alone["ids"] == cut["ids"]
        first = [*alone.get("response_mask", []), False].index(False) or len(alone["ids"])
        ours, theirs = ([w for w in row["weights"] if w is not None] for row in (alone, cut))
        assert ours[:first] == [1.0] * first
        later += ours[first:]
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert min(later) < 0.95 and max(later) > 1.05


def test_the_engine_s_log_probs_of_every_turn_are_the_actor_s(runs):
    for row in read_metrics(runs["one"]):
        assert 0 < row["mismatch/max"] < 1e-4
        assert row["actor/grad_norm"] > 0


def test_a_dump_tells_which_ids_were_sampled_and_a_heatmap_shows_those(runs):
    table = token_bytes(AutoTokenizer.from_pretrained(runs["one"] / "hf"))
    for row in (row for row in dumped(runs["one"]) if row["parts"]["turns"] > 1):
        assert len(row["regions"]) == len(row["log_probs"]) == len(row["ids"]) > sum(row["response_mask"])
        heard = [i for i, sampled in zip(row["ids"], row["response_mask"], strict=True) if not sampled]
        assert "</tool_response>" in b"".join(table[i] for i in heard).decode()
        response = read_response(row, table)
        assert len(response.ids) == sum(row["response_mask"])
        assert len(response.ids) == len(response.weights) and sum(response.weights) == pytest.approx(len(response.ids))


def test_tools_answered_and_their_words_count_for_the_reward_but_not_for_the_length(runs):
    rows = dumped(runs["one"])
    assert {1, 2, 3} <= {int(row["parts"]["turns"]) for row in rows}
    assert any("after 0\n</tool_response>" in row["text"] for row in rows)
    assert any("after 2\n</tool_response>" in row["text"] for row in rows)
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    assert all(len(row["ids"]) <= 96 for row in rows)
    for number, metrics in enumerate(read_metrics(runs["one"])):
        step = rows[8 * number : 8 * number + 8]
        assert metrics["rollout/length"] < sum(len(row["ids"]) for row in step) / 8
