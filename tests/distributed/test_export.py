"""Weights in and out: import and export are exact on every layout, and an export is complete or absent."""

import json
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.cases import Layout, merged
from tests.distributed.export_cases import (
    exported_twice,
    interrupted_export,
    killed_between_renames,
    partly_failed_export,
    random_weights,
    recorded_export,
    trained_and_exported,
)
from tests.tensors import read, same

LAYOUTS = [
    *(Layout(tp=tp, pp=pp, dp=dp) for tp, pp, dp in product((1, 2), repeat=3) if tp * pp * dp <= 4),
    Layout(pp=2, vpp=2),
    Layout(tp=2, pp=2, vpp=2, sp=True),
]
# 100 kB: the tiny models (0.5 MB of layers, 128 kB per embedding in fp32) are cut into several files.
SEVERAL_FILES, ONE_FILE = 100_000, 2**30
# Each way to cut a model once, with data parallelism and without, tied embeddings where a pipeline parts their copies.
CHOSEN = [
    *((False, Layout(**cut)) for cut in ({}, {"tp": 2, "dp": 2}, {"tp": 2, "pp": 2})),
    *((True, Layout(**cut)) for cut in ({"tp": 2}, {"pp": 2, "dp": 2}, {"tp": 2, "pp": 2, "vpp": 2, "sp": True})),
]
CASES = [
    *(("qwen3", tied, layout, "float32", SEVERAL_FILES) for tied in (False, True) for layout in LAYOUTS),
    ("qwen3", False, Layout(tp=2, pp=2), "bfloat16", SEVERAL_FILES),
    ("qwen3", True, Layout(pp=2, vpp=2), "bfloat16", SEVERAL_FILES),
    ("qwen3", True, Layout(), "float32", ONE_FILE),
    ("qwen3", False, Layout(tp=2, pp=2), "float32", ONE_FILE),
    ("qwen2", False, Layout(tp=2, pp=2), "float32", SEVERAL_FILES),
    ("llama", True, Layout(tp=2, pp=2), "bfloat16", SEVERAL_FILES),
]
PARAMETERS = [
    pytest.param(
        *(family, tied, layout, dtype, size),
        id=f"{family}-{'tied' if tied else 'untied'}-{layout}-{dtype}-{size}",
        marks=[] if number >= 2 * len(LAYOUTS) or (tied, layout) in CHOSEN else pytest.mark.slow,
    )
    for number, (family, tied, layout, dtype, size) in enumerate(CASES)
]


@pytest.mark.parametrize("family, tied, layout, dtype, file_bytes", PARAMETERS)
def test_import_and_export_are_exact_and_hugging_face_reads_them(
    pool, tiny_model, tmp_path, family, tied, layout, dtype, file_bytes
):
    model = tiny_model(family, tied)
    pool.run(exported_twice, layout.world_size, model, layout, dtype, tmp_path, file_bytes)
    original = {name: tensor.to(getattr(torch, dtype)) for name, tensor in read(model).items()}
    assert same(read(tmp_path / "first"), original)
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "first").iterdir())) == len(list((tmp_path / "second").iterdir()))
    files = sorted(path.name for path in (tmp_path / "first").glob("*.safetensors"))
    if file_bytes == SEVERAL_FILES:
        index = json.loads((tmp_path / "first" / "model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files
        assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in original.values())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype="auto")
    assert again.dtype == getattr(torch, dtype)
    assert same({n: t for n, t in again.state_dict().items() if not (tied and n == "lm_head.weight")}, original)


@pytest.mark.parametrize("tied, layout", [(False, Layout(tp=2, dp=2)), (True, Layout(pp=2, dp=2))], ids=str)
def test_a_trained_policy_is_exported_as_it_is(pool, tiny_model, answers, tmp_path, tied, layout):
    model = tiny_model(tied=tied)
    out = tmp_path / "out"
    results = pool.run(trained_and_exported, layout.world_size, model, layout, answers, out)
    exported = read(out)
    assert same(exported, merged(results, "weights"))
    assert not any(torch.equal(exported[name], tensor) for name, tensor in read(model).items())


@pytest.mark.parametrize("tied", [False, True])
def test_random_weights_are_the_same_on_every_layout(pool, tiny_model, tied):
    model = tiny_model(tied=tied)
    first = merged(pool.run(random_weights, 1, model, Layout(), 3), "weights")
    for layout in (Layout(tp=2, dp=2), Layout(pp=2, vpp=2), Layout(tp=2, pp=2)):
        assert same(merged(pool.run(random_weights, layout.world_size, model, layout, 3), "weights"), first)
    other = merged(pool.run(random_weights, 1, model, Layout(), 4), "weights")
    for name, tensor in first.items():
        if tensor.dim() == 1:
            assert (tensor == 1).all()
        else:
            assert tensor.std() == pytest.approx(0.02, rel=0.1) and abs(tensor.mean()) < 2e-3
            assert not torch.equal(tensor, other[name])
    matrices = [tensor.flatten()[:64] for tensor in first.values() if tensor.dim() == 2]
    assert len({tuple(row.tolist()) for row in matrices}) == len(matrices)


def test_an_existing_directory_is_replaced_only_by_a_complete_export(pool, tiny_model, tmp_path):
    model, out = tiny_model(), tmp_path / "first"
    out.mkdir()
    (out / "model-00001-of-00009.safetensors").write_bytes(b"the last good export")
    assert "disk full" in pool.run(interrupted_export, 1, model, out)[0]
    assert [path.name for path in out.iterdir()] == ["model-00001-of-00009.safetensors"]
    assert (tmp_path / "first.partial").exists(), "the export had begun"
    pool.run(exported_twice, 1, model, Layout(), "float32", tmp_path, ONE_FILE)
    assert same(read(out), read(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_an_export_that_a_kill_left_aside_gets_its_name_back(pool, tiny_model, tmp_path):
    model, out = tiny_model(), tmp_path / "out"
    out.mkdir()
    (out / "mark").write_text("the last good export")
    pool.run(killed_between_renames, 1, model, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.old", "out.partial"]
    assert "disk full" in pool.run(interrupted_export, 1, model, out)[0]
    assert [path.name for path in out.iterdir()] == ["mark"]
    pool.run(killed_between_renames, 1, model, out)
    pool.run(recorded_export, 1, model, Layout(), out)
    assert same(read(out), read(model)) and not (out / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_gets_its_name_when_the_disk_has_all_of_it(pool, tiny_model, tmp_path):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    main, other = pool.run(recorded_export, 2, tiny_model(), Layout(pp=2), out)
    named = main.index(("rename", str(out)))
    synced = {path for event, path in [*main[:named], *other] if event == "sync"}
    assert synced == {str(partial), *(str(partial / path.name) for path in out.iterdir())}
    assert [path for _, path in other] == [str(partial / "model-00002-of-00002.safetensors")]
    assert ("sync", str(tmp_path)) in main[named:]


@pytest.mark.parametrize("layout, bad_rank", [(Layout(tp=2), 0), (Layout(pp=2), 1), (Layout(tp=2, pp=2), 2)], ids=str)
def test_a_stage_without_room_ends_the_export_on_every_rank(pool, tiny_model, tmp_path, layout, bad_rank):
    out = tmp_path / "out"
    errors = pool.run(partly_failed_export, layout.world_size, tiny_model(), layout, out, bad_rank)
    assert len(set(errors)) == 1 and "No space left on device" in errors[0]
    assert not out.exists()
