"""Checkpoints: exact on every layout, and the same in the background."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from rest_megatron.checkpoint.manifest import read_manifest
from tests import tiny
from tests.distributed import store_cases as cases
from tests.distributed.cases import Layout, merged

OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
KINDS = ("master", "exp_avg", "exp_avg_sq", "weights")
# Tied or not, precision, the layout that saves, and those that load.
CASES = [
    (
        False,
        "float32",
        Layout(tp=2, pp=2),
        [Layout(tp=2, pp=2), Layout(), Layout(tp=4), Layout(pp=2, vpp=2), Layout(tp=2, dp=2, deepspeed=OFFLOAD)],
    ),
    (
        True,
        "bfloat16",
        Layout(pp=2, dp=2),
        [Layout(pp=2, dp=2), Layout(), Layout(tp=2, pp=2, vpp=2, sp=True), Layout(dp=3, deepspeed=OFFLOAD)],
    ),
    (True, "float32", Layout(tp=2, pp=2, vpp=2), [Layout(tp=2, pp=2, vpp=2), Layout(dp=2), Layout(pp=2, dp=2)]),
    (False, "bfloat16", Layout(dp=2, deepspeed=OFFLOAD), [Layout(dp=2, deepspeed=OFFLOAD), Layout(tp=4), Layout(pp=2)]),
    (False, "float32", Layout(tp=2, dp=2, deepspeed=OFFLOAD), [Layout(tp=2, dp=2, deepspeed=OFFLOAD), Layout()]),
]
PAIRS = [
    pytest.param(
        number,
        layout,
        id=f"{'tied' if tied else 'untied'}-{dtype}-{source}-to-{layout}",
        # Every pair is tested with --slow; else each source on its own layout and on one more.
        marks=[pytest.mark.slow] if place > 1 else [],
    )
    for number, (tied, dtype, source, layouts) in enumerate(CASES)
    for place, layout in enumerate(layouts)
]
# Of the two losses that follow. bfloat16 rounds each layout's partial sums on their own.
LOSS = {"float32": 1e-6, "bfloat16": 1e-3}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """`wide(tied)`: a tiny model that four tensor-parallel ranks can share."""
    made = {}

    def get(tied: bool) -> Path:
        if tied not in made:
            with mock.patch.dict(tiny.SIZES, num_key_value_heads=4):
                made[tied] = tiny.make_model(tmp_path_factory.mktemp("wide"), tied=tied)
        return made[tied]

    return get


@pytest.fixture(scope="module")
def saved(pool, wide, answers, tmp_path_factory):
    """`saved(number)`: the directory and every rank's result of a case that trained and saved."""
    made = {}

    def get(number: int):
        if number not in made:
            tied, dtype, layout, _ = CASES[number]
            directory = tmp_path_factory.mktemp("checkpoints")
            args = (wide(tied), layout, answers, dtype, directory)
            made[number] = directory, pool.run(cases.trained_and_saved, layout.world_size, *args)
        return made[number]

    return get


def assert_same(results: list[dict], others: list[dict], key: str, other_key: str) -> None:
    """Masters, moments and weights of two runs are the same bits, and counters and learning rates the same numbers."""
    ours, theirs = [r[key] for r in results], [r[other_key] for r in others]
    for kind in KINDS:
        first, second = merged(ours, kind), merged(theirs, kind)
        assert first.keys() == second.keys() and first
        for name in first:
            assert first[name].dtype == second[name].dtype
            assert torch.equal(first[name], second[name]), (kind, name)
    for state in [*ours, *theirs]:
        assert state["counters"] == ours[0]["counters"]
        assert state["learning_rates"] == ours[0]["learning_rates"]


@pytest.mark.parametrize("number, layout", PAIRS)
def test_every_layout_loads_what_one_has_saved_to_the_bit(pool, wide, answers, saved, number, layout):
    tied, dtype, source, _ = CASES[number]
    directory, before = saved(number)
    args = (wide(tied), layout, answers, dtype, directory / "step-00000002")
    after = pool.run(cases.loaded_and_trained, layout.world_size, *args)
    assert_same(after, before, "loaded", "saved")
    for result in after:
        assert result["rounded"] and (result["replicas"], result["tied"]) == (0, 0)
        assert result["same_layout"] == (layout == source)
    if layout == source:
        assert [r["metrics"] for r in after] == [r["metrics"] for r in before]
        assert_same(after, before, "end", "end")
        return
    for step, want in zip(after[0]["metrics"], before[0]["metrics"], strict=True):
        assert step["actor/loss"] == pytest.approx(want["actor/loss"], abs=LOSS[dtype])
        assert step["actor/lr"] == want["actor/lr"]


@pytest.mark.parametrize("number", [1, 2])
def test_saving_changes_nothing(pool, wide, answers, saved, tmp_path, number):
    tied, dtype, layout, _ = CASES[number]
    _, before = saved(number)
    straight = pool.run(
        cases.trained_and_saved, layout.world_size, wide(tied), layout, answers, dtype, tmp_path / "none", False
    )
    assert [r["metrics"] for r in straight] == [r["metrics"] for r in before]
    assert_same(straight, before, "end", "end")
    assert not (tmp_path / "none").exists()


def test_a_fresh_engine_is_loaded_from_a_save_before_the_first_step(pool, wide, answers, saved):
    directory, before = saved(2)
    tied, dtype, layout, _ = CASES[2]
    args = (wide(tied), layout, answers, dtype, directory / "step-00000000")
    after = pool.run(cases.loaded_and_trained, layout.world_size, *args)
    # Two updates from there are those that followed the save.
    assert_same(after, before, "end", "saved")
    first = after[0]["loaded"]
    assert first["counters"] == {"version": 0, "adam_step": 0, "schedule_step": 0}
    assert not any(t.any() for kind in ("exp_avg", "exp_avg_sq") for t in first[kind].values())


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_says_what_it_holds(saved, number):
    tied, dtype, layout, _ = CASES[number]
    directory, _ = saved(number)
    checkpoint = directory / "step-00000002"
    manifest = read_manifest(checkpoint)
    assert (manifest.step, manifest.model_dtype) == (2, dtype)
    assert manifest.state == {
        "train": cases.STATE,
        "actor": {"version": 2, "adam_step": 2, "schedule_step": 2},
    }
    assert manifest.layout == {
        "tensor_model_parallel_size": layout.tp,
        "pipeline_model_parallel_size": layout.pp,
        "virtual_pipeline_model_parallel_size": layout.vpp,
        "data_parallel_size": layout.dp,
        "world_size": 4,
    }
    assert manifest.versions["torch"] == torch.__version__
    files = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert files - {"manifest.json"} == manifest.files.keys()
    assert {"experience.jsonl", "hf/config.json", "rng/rank-00003.safetensors"} <= files
    assert (checkpoint / "experience.jsonl").read_text() == '{"answer": "naïve"}\n'
    assert (directory / "latest").read_text() == "step-00000002\n"
    assert "lm_head.weight" in str(manifest.tensors) or tied
    tensors = 4 * sum(torch.Size(entry["shape"]).numel() for entry in manifest.tensors.values())
    state = [entry["bytes"] for name, entry in manifest.files.items() if name.startswith("state/")]
    assert tensors < sum(state) < 1.1 * tensors, "no replica is written twice"
    names = {key for path in checkpoint.glob("state/*.safetensors") for key in load_file(path)}
    assert names == manifest.tensors.keys()
    assert {Path(name).suffix for name in files} == {".safetensors", ".json", ".jsonl"}, "no pickle"


def test_bits_that_a_sum_over_ranks_would_lose_are_kept(pool, tiny_model, tmp_path):
    assert pool.run(cases.negative_zeros, 3, tiny_model(), Layout(dp=3), tmp_path) == [True] * 3


def test_large_models_are_written_and_read_in_pieces(pool, tiny_model, answers, tmp_path):
    results = pool.run(cases.in_small_pieces, 2, tiny_model(), Layout(dp=2), answers, tmp_path)
    assert_same(results, results, "loaded", "saved")
    assert len(list(tmp_path.glob("step-00000001/state/*.safetensors"))) > 10


def test_random_states_go_on_on_the_same_layout_alone(pool, tiny_model, tmp_path):
    results = pool.run(cases.random_states, 2, tiny_model(), Layout(tp=2), tmp_path)
    for from_earlier, after_save, loaded_earlier, loaded, later in results:
        assert loaded_earlier == from_earlier
        assert loaded == after_save
        assert len({tuple(map(str, drawn)) for drawn in (from_earlier, after_save, later)}) == 3
    assert results[0][0] != results[1][0], "each rank has its own"


@pytest.mark.parametrize("layout", [Layout(), Layout(dp=2), Layout(tp=2, pp=2)], ids=str)
def test_a_save_in_the_background_holds_the_state_of_its_call(pool, tiny_model, answers, tmp_path, layout):
    args = (tiny_model(tied=True), layout, answers, tmp_path)
    results = pool.run(cases.saved_behind_training, layout.world_size, *args)
    assert all(result["unfinished"] for result in results)
    assert_same(results, results, "first", "saved")
    assert_same(results, results, "second", "end")
    assert read_manifest(tmp_path / "step-00000001").state["train"] == {"cursor": [1]}
