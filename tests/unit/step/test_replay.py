"""That a dump comes back as it was, and that one which cannot be trained on is refused with its line."""

import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch

from rest_megatron.commands import train
from rest_megatron.config import load
from rest_megatron.errors import DataError
from rest_megatron.observe.rollouts import rollout_metrics
from rest_megatron.step.collect import group_advantages
from rest_megatron.step.dump import dump_rollouts
from rest_megatron.step.replay import Replay
from rest_megatron.types import Experience, Prompt, Sample, Score

TABLE = [bytes([i]) for i in range(256)] + [b"<|im_end|>"]
PROMPTS = [Prompt(n, ({"role": "user", "content": "?"},), "truth", (7, 8, 9 + n)) for n in (0, 1, 4)]
CONFIG = load((), ["rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_new_tokens=4", "train.steps=2"])


def sample(prompt, number):
    """Answers of three ids; every fourth is cut, and a tool said the middle of it."""
    mask = (True, False, True) if number % 4 == 3 else ()
    reason = "length" if mask else "stop"
    log_probs = (-1 / 3, 0.0 if mask else -1e-30, -0.1 * number)
    return Sample(prompt.token_ids, (65 + number, 66, 256), log_probs, reason, 3 + number % 2, mask)


def experience(first=0.0):
    """Three groups of two, the last of which teaches nothing."""
    samples = [[sample(p, 2 * n), sample(p, 2 * n + 1)] for n, p in enumerate(PROMPTS)]
    totals = [[first, 1 / 3], [0.1, 2.0], [1.0, 1.0]]
    scores = [[Score(x, 0.25, x - 0.25, {"format": 1.0, "mine": x}, "ok") for x in row] for row in totals]
    return Experience(PROMPTS, samples, scores, group_advantages(scores, CONFIG.algorithm), 2, 3, 5.0, 1.0, 0.5)


@pytest.fixture
def replayed(tmp_path):
    """Two steps dumped, and the overrides that replay them."""
    for step in (1, 2):
        dump_rollouts(tmp_path, step, experience(step), TABLE, {})
    directory = tmp_path / "rollouts"
    config = replace(CONFIG, train=replace(CONFIG.train, debug="train_only", replay=str(directory)))
    return SimpleNamespace(config=config, directory=directory, path=directory / "step-2.jsonl")


def refused(made, prompts=PROMPTS, vocab_size=257, **rollout) -> str:
    config = replace(made.config, rollout=replace(made.config.rollout, **rollout))
    with pytest.raises(DataError) as caught:
        Replay(config, prompts, vocab_size).check()
    return str(caught.value)


@pytest.mark.parametrize("step", [1, 2])
def test_a_dump_comes_back_as_it_was(replayed, step):
    replay = Replay(replayed.config, PROMPTS, 257)
    replay.check()
    found, wanted = replay.experience(step), experience(step)
    for name in {field.name for field in fields(Experience)} - {"advantages"}:
        if not name.endswith("seconds"):
            assert getattr(found, name) == getattr(wanted, name), name
    assert torch.equal(found.advantages, wanted.advantages)
    assert len(found.trained) == 4 and found.trained == wanted.trained


def test_what_was_not_sampled_has_no_speed(replayed):
    metrics = rollout_metrics(Replay(replayed.config, PROMPTS, 257).experience(1))
    wanted = rollout_metrics(experience(1))
    assert wanted.pop("rollout/tokens_per_second") == (6 * 3 - 1) / 5.0
    assert metrics == wanted


def test_advantages_are_those_of_the_configuration_now(replayed):
    config = replace(replayed.config, algorithm=replace(replayed.config.algorithm, advantage="leave_one_out"))
    found = Replay(config, PROMPTS, 257).experience(1)
    assert found.advantages[1].tolist() == pytest.approx([-1.9, 1.9])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


NAN, HUGE = math.nan, 10**400


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("log_probs", [-0.5, NAN, -0.5], "'log_probs' holds float nan, must be finite"),
        ("log_probs", [-0.5, -HUGE, -0.5], "'log_probs' holds int -1000"),
        ("log_probs", [-0.5, -0.5], "'log_probs' has 2 entries for 3 ids"),
        ("log_probs", None, "'log_probs' is missing"),
        ("score", NAN, "'score' is float nan, must be a finite number"),
        ("format", None, "'format' is missing"),
        ("correctness", "1", "'correctness' is str '1'"),
        ("parts", {"format": math.inf}, "'parts.format' is float inf"),
        ("parts", [1.0], "'parts' is list [1.0], must be a dict"),
        ("reason", 3, "'reason' is int 3"),
        ("ids", [65, 257, 256], "'ids' spans 65 to 257, must lie in 0..256, the vocabulary of model.path="),
        ("ids", [65, -1, 256], "'ids' spans -1 to 256"),
        ("ids", [65, True, 256], "'ids' holds bool True"),
        ("ids", [], "'ids' has 0 entries, must have 1 to rollout.max_new_tokens=4"),
        ("ids", [65] * 5, "'ids' has 5 entries, must have 1 to rollout.max_new_tokens=4"),
        ("response_mask", [True, False], "'response_mask' has 2 entries for 3 ids"),
        ("response_mask", [False] * 3, "'response_mask' marks no id as sampled"),
        ("finish_reason", "abort", "'finish_reason' is str 'abort', must be stop or length"),
        ("weight_version", -1, "'weight_version' is int -1"),
        ("weight_version", True, "'weight_version' is bool True"),
        ("prompt", 2, "'prompt' is 2, which is not a row of data.train=d"),
        ("prompt", 4, "'prompt_hash' is str"),
        ("prompt_hash", "0" * 16, "but that of row 1 of data.train=d is"),
        ("prompt_tokens", 4, "of 4 tokens, but that of row 1 of data.train=d is"),
        ("trained", 1, "'trained' is int 1, must be a bool"),
        ("trained", None, "'trained' is missing"),
        ("rounds", 0, "'rounds' is int 0"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_file_line_and_field(replayed, name, value, said):
    rows = rows_of(replayed.path)
    rows[2][name] = value
    write(replayed.path, rows)
    replayed.config = replace(replayed.config, data=replace(replayed.config.data, train="d"))
    message = refused(replayed)
    title, fault, fix = message.splitlines()
    assert title.startswith(f"data error: {replayed.path}: faults in its 6 rows: 1 (")
    assert fault.startswith("  row 2 (line 3): field ") and said in fault, fault
    assert fix.startswith("  Replay a whole dump")


def test_a_line_that_was_cut_is_refused_with_its_number(replayed):
    replayed.path.write_bytes(replayed.path.read_bytes()[:-40])
    assert "row 5 (line 6): is not valid JSON" in refused(replayed)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows[:-1], "row 4 (line 5) is the last, and 5 rows are not a multiple of rollout.group_size=2"),
        (
            lambda rows: rows[:1] + rows[2:],
            "row 1 (line 2): field 'prompt' is 1, but row 0 (line 1) of the same group has",
        ),
        (lambda rows: rows[4:] + rows[:4], "row 2 (line 3): field 'trained' is True; whole groups are trained on"),
        (lambda rows: [*rows[:3], rows[3] | {"trained": False}, *rows[4:]], "row 3 (line 4): field 'trained' is False"),
        (lambda rows: [*rows[:5], rows[5] | {"rounds": 2}], "row 5 (line 6): field 'rounds' is 2, in row 0 (line 1) 3"),
        (lambda rows: rows[:2], "1 groups, 1 of them trained on; rollout.prompts_per_step=2 must lie between the two"),
        (lambda rows: [row | {"trained": True} for row in rows], "3 groups, 3 of them trained on; rollout.prompts_per"),
    ],
)
def test_rows_that_are_not_the_groups_of_a_step_are_refused(replayed, change, said):
    write(replayed.path, change(rows_of(replayed.path)))
    assert said in refused(replayed)


def test_other_sizes_of_a_step_are_refused(replayed):
    assert "row 5 (line 6) is the last, and 6 rows are not a multiple of rollout.group_size=4" in refused(
        replayed, group_size=4
    )
    assert "rollout.prompts_per_step=4 must lie between the two" in refused(replayed, prompts_per_step=4)


def test_other_prompts_and_another_vocabulary_are_refused(replayed):
    others = [replace(prompt, token_ids=(*prompt.token_ids, 5)) for prompt in PROMPTS]
    assert "row 0 (line 1): field 'prompt_hash'" in refused(replayed, prompts=others)
    assert "row 4 (line 5): field 'prompt' is 4, which is not a row" in refused(replayed, prompts=PROMPTS[:2])
    assert "must lie in 0..255" in refused(replayed, vocab_size=256)


@pytest.mark.parametrize("step, fix", [(1, "name the rollouts directory of a run"), (2, "set train.steps=1")])
def test_a_missing_step_is_named_with_what_is_needed(replayed, step, fix):
    (replayed.directory / f"step-{step}.jsonl").unlink()
    message = refused(replayed)
    assert f"holds no step-{step}.jsonl; train.steps=2 needs step-1.jsonl to step-2.jsonl, 1 of them" in message
    assert fix in message


def test_saved_answers_are_checked_before_a_job_starts(replayed, monkeypatch):
    monkeypatch.setattr(train, "read_tokenizer", lambda config: None)
    monkeypatch.setattr(train, "read_prompts", lambda config, tokenizer, path: PROMPTS)
    monkeypatch.setattr("rest_megatron.step.replay.read_model_config", lambda config: {"vocab_size": 66})
    monkeypatch.setattr(train, "open_session", lambda *args: pytest.fail("a job was started"))
    with pytest.raises(
        DataError, match=r"step-1.jsonl: faults in its 6 rows: 6 .*\n  row 0 \(line 1\): field 'ids' spans 65 to"
    ):
        train.main(replayed.config, None)
