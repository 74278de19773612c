"""From sampled dialogues to flat vectors: of sampled ids alone, each turn labelled as an answer of its own."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from rest_megatron.actor.dealing import CostModel
from rest_megatron.config import load
from rest_megatron.data.answers import answer_bytes, turns
from rest_megatron.grammar import HERMES, TOOLRL
from rest_megatron.method.regions import Region, label_regions
from rest_megatron.step.batch import deal_batch, mini_batch_borders
from rest_megatron.step.update import planned_updates
from rest_megatron.step.weigh import _reference
from rest_megatron.types import Sample

STOP = 256
TABLE = [bytes([i]) for i in range(256)] + [b"<|im_end|>"]
CALL = b'<think> t </think>\n<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'
LAST = b"<think> u </think>\n<response> warm </response>"
TOOL = b"\n<tool_response>\n<think> 21 </tool_response>\nassistant\n"
OPENS = TOOL + b"<think>\n"
OPENED = b"hm </think> warm"


def dialogue(*parts: tuple[bytes, bool], prompt=b"?", ends=True) -> Sample:
    """A dialogue of stretches, sampled or not; a sampled one that others follow, or the last, has a stop token."""
    ids, mask = [], []
    for number, (text, sampled) in enumerate(parts):
        stops = sampled and (ends or number + 1 < len(parts))
        own = [*text, *([STOP] if stops else [])]
        ids, mask = ids + own, mask + [sampled] * len(own)
    log_probs = [-0.01 * i if sampled else 0.0 for i, sampled in enumerate(mask)]
    reason = "stop" if ends and parts[-1][1] else "length"
    return Sample(tuple(prompt), tuple(ids), tuple(log_probs), reason, 0, tuple(mask))


def batch_of(*samples: Sample, grammar=TOOLRL, advantages=None, borders=None, rank=0, num_ranks=1):
    return deal_batch(
        samples,
        torch.arange(len(samples)) + 1.0 if advantages is None else advantages,
        TABLE,
        grammar,
        group_size=len(samples),
        borders=borders or [0, len(samples)],
        learns=[True] * len(samples),
        cost=CostModel(row=0, pair=0, learner=4),
        dp_rank=rank,
        dp_size=num_ranks,
        device=torch.device("cpu"),
    )


def test_vectors_run_over_sampled_ids_alone():
    sample = dialogue((CALL, True), (TOOL, False), (LAST, True))
    plain = Sample((1,), (*LAST, STOP), (-0.5,) * (len(LAST) + 1), "stop", 0)
    batch = batch_of(sample, plain)
    count = len(CALL) + len(LAST) + 2
    assert sample.num_sampled == count and batch.lengths == [count, len(LAST) + 1]
    assert batch.trajectories[0].length == len(sample.prompt_ids) + len(sample.token_ids)
    wanted = [x for x, own in zip(sample.log_probs, sample.response_mask, strict=True) if own]
    assert batch.rollout_log_probs[:count].tolist() == pytest.approx(wanted)
    assert batch.advantages.tolist() == [1.0] * count + [2.0] * (len(LAST) + 1)
    assert batch.sequence_index.tolist() == [0] * count + [1] * (len(LAST) + 1)
    assert batch.mini_batches[0].tokens == slice(0, count + len(LAST) + 1)
    assert len(batch.regions) == len(batch.advantages)


@pytest.mark.parametrize("ends", [True, False])
def test_each_turn_is_labelled_as_an_answer_of_its_own(ends):
    batch = batch_of(dialogue((CALL, True), (TOOL, False), (CALL, True), ends=ends))
    first = label_regions([*(bytes([b]) for b in CALL), TABLE[STOP]], stop_token=True)
    last = first if ends else label_regions([bytes([b]) for b in CALL], stop_token=False)
    assert batch.regions.tolist() == first + last
    assert first[-1] == Region.FORMAT and {*first} == {*Region}


def test_a_turn_knows_whether_the_ids_before_it_opened_its_thought():
    batch = batch_of(dialogue((OPENED, True), (OPENS, False), (OPENED, True)), grammar=HERMES)
    pieces = [*(bytes([b]) for b in OPENED), TABLE[STOP]]
    closed, opened = (
        label_regions(pieces, stop_token=True, grammar=HERMES, think_open=think_open) for think_open in (False, True)
    )
    assert closed != opened
    assert batch.regions.tolist() == closed + opened


def test_a_dialogue_cut_inside_a_tool_s_answer_still_ends_its_last_turn_with_a_stop_token():
    batch = batch_of(dialogue((CALL, True), (TOOL, False)))
    assert batch.regions.tolist() == label_regions([*(bytes([b]) for b in CALL), TABLE[STOP]], stop_token=True)


def test_the_published_code_s_weights_take_each_turn_by_itself():
    batch = batch_of(dialogue((CALL, True), (TOOL, False), (LAST, True)))
    weights = _reference(batch, 1, TABLE).split([len(CALL) + 1, len(LAST) + 1])
    for text, own in zip((CALL, LAST), weights, strict=True):
        alone = _reference(batch_of(dialogue((text, True))), 1, TABLE)
        assert own.tolist() == alone.tolist()


def test_the_text_of_a_dialogue_is_everything_but_its_last_stop_token():
    sample = dialogue((CALL, True), (TOOL, False), (LAST, True))
    assert answer_bytes(sample, TABLE) == CALL + TABLE[STOP] + TOOL + LAST
    cut = replace(sample, token_ids=sample.token_ids[:-1], finish_reason="length")
    assert answer_bytes(cut, TABLE) == answer_bytes(sample, TABLE)


def test_turns_are_the_runs_of_sampled_ids():
    assert turns((5, 6, 7), ()) == [slice(0, 3)]
    assert turns((5, 6, 7, 8, 9), (True, False, False, True, True)) == [slice(0, 1), slice(3, 5)]
    assert turns((5, 6), (True, False)) == [slice(0, 1)]
    assert turns((5, 6), (False, False)) == []
    with pytest.raises(ValueError, match="a mask of 1 entries for 2 ids"):
        turns((5, 6), (True,))


@pytest.mark.parametrize(
    "groups, size, borders",
    [
        (16, 32, [0, 32, 64, 96, 128]),
        (17, 128, [0, 64, 136]),
        (3, 8, [0, 8, 16, 24]),
        (5, 20, [0, 8, 24, 40]),  # two groups of 8 fit in 20 answers
        (16, None, [0, 128]),
        (2, 4, [0, 4, 8, 12, 16]),
        (1, 3, [0, 2, 5, 8]),
        (0, 8, [0]),
        (0, None, [0]),
    ],
)
def test_mini_batches_end_where_groups_do_if_one_fits_in(groups, size, borders):
    config = settings(size)
    assert mini_batch_borders(config, groups) == borders
    assert max((last - first for first, last in pairwise(borders)), default=0) <= (size or 128)


@pytest.mark.parametrize("size, updates", [(None, 2), (128, 2), (64, 4), (20, 16), (8, 32), (4, 64)])
def test_as_many_updates_are_planned_as_all_groups_have_mini_batches(size, updates):
    assert planned_updates(settings(size)) == updates


def settings(mini_batch_size: int | None):
    """Two epochs of 16 groups of 8."""
    size = "null" if mini_batch_size is None else mini_batch_size
    words = ["rollout.prompts_per_step=16", "rollout.group_size=8", "train.epochs=2", f"train.mini_batch_size={size}"]
    return load((), words)


def test_ranks_share_each_mini_batch_evenly():
    samples = [Sample((number, 2), (*LAST, STOP), (-0.5,) * (len(LAST) + 1), "stop", 0) for number in (0, 1, 2, 3, 4)]
    samples = [sample for sample in samples for _ in range(2)]
    shares = [batch_of(*samples, borders=[0, 4, 10], rank=rank, num_ranks=2) for rank in range(2)]
    assert [batch.sample_index for batch in shares] == [[0, 1, 4, 8, 9], [2, 3, 5, 6, 7]]
    for batch in shares:
        assert [part.num_sequences_global for part in batch.mini_batches] == [4, 6]
        assert [part.sequences for part in batch.mini_batches] == [slice(0, 2), slice(2, 5)]
        assert [part.tokens for part in batch.mini_batches] == [slice(0, 2 * 47), slice(2 * 47, 5 * 47)]
        assert batch.imbalance == 1.0
