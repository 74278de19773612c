"""Conversions, with Megatron-core and our own store on the other side: nothing but the format changes."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rest_megatron.cli import main
from tests import tiny
from tests.distributed.cases import Layout
from tests.distributed.convert_cases import loaded_by_megatron, saved_by_megatron, trained_saved_and_exported
from tests.tensors import read, same

LAYOUTS = [Layout(tp=tp, pp=pp) for tp in (1, 2, 4) for pp in (1, 2)]
MODELS = [("qwen3", False), ("qwen3", True), ("qwen2", False), ("llama", True)]
MODEL_IDS = [f"{family}-{'tied' if tied else 'untied'}" for family, tied in MODELS]
# Each model on TP 2 x PP 2, one of them on one rank and on four, too. The others differ from these in numbers alone.
CHOSEN = [
    *((family, tied, Layout(tp=2, pp=2)) for family, tied in MODELS),
    *(("qwen3", False, layout) for layout in (Layout(), Layout(tp=4))),
]
CASES = [
    pytest.param(*case, marks=[] if case in CHOSEN else pytest.mark.slow)
    for case in (
        *(("qwen3", tied, layout) for tied in (False, True) for layout in LAYOUTS),
        *((family, tied, layout) for family, tied in MODELS[2:] for layout in (Layout(tp=4), Layout(tp=2, pp=2))),
    )
]
APART = {"non_homogeneous_layers": True}
GATE_AND_UP_APART = {"singleton_local_shards": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """`model(family, tied)`: a tiny model with a tokenizer; it has a key/value head for each of four ranks."""
    made = {}

    def get(family: str, tied: bool) -> Path:
        if (family, tied) not in made:
            with mock.patch.dict(tiny.SIZES, num_key_value_heads=4):
                made[family, tied] = tiny.make_model(tmp_path_factory.mktemp("model"), family, tied)
            (made[family, tied] / "tokenizer.json").write_text('{"version": "1.0"}')
            (made[family, tied] / "chat_template.jinja").write_text("{{ messages }}")
        return made[family, tied]

    return get


def convert(source: Path, output: Path, *words: str) -> Path:
    assert main(["convert", f"--input={source}", f"--output={output}", *words], {}) == 0
    assert not output.with_name(f"{output.name}.partial").exists()
    return output


@pytest.mark.parametrize("family, tied, layout", CASES, ids=str)
def test_what_megatron_saves_becomes_the_model_it_was(pool, model, tmp_path, family, tied, layout):
    source = model(family, tied)
    pool.run(saved_by_megatron, layout.world_size, source, layout, "float32", tmp_path / "iter_0000007")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    out = convert(tmp_path, tmp_path / "out", "--trust-pickle", f"--model={source}")
    assert same(read(out), read(source))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in source.iterdir())


@pytest.mark.parametrize("metadata", [APART, GATE_AND_UP_APART], ids=["layers apart", "gate and up apart"])
def test_every_spelling_of_megatron_is_read(pool, model, tmp_path, metadata):
    source, layout = model("qwen3", False), Layout(tp=2, pp=2)
    pool.run(saved_by_megatron, 4, source, layout, "bfloat16", tmp_path / "iter", metadata)
    out = convert(tmp_path / "iter", tmp_path / "out", "--trust-pickle", f"--model={source}")
    assert same(read(out), {name: tensor.bfloat16() for name, tensor in read(source).items()})


def test_a_virtual_pipeline_is_read(pool, model, tmp_path):
    source, layout = model("qwen3", True), Layout(pp=2, vpp=2)
    pool.run(saved_by_megatron, 2, source, layout, "float32", tmp_path / "iter")
    assert same(read(convert(tmp_path / "iter", tmp_path / "out", "--trust-pickle", f"--model={source}")), read(source))


def test_the_padding_of_a_vocabulary_is_cut_off(pool, model, tmp_path):
    source = model("qwen3", False)
    padded = shutil.copytree(source, tmp_path / "padded")
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": 512}))
    tensors = load_file(padded / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.randn(12, 64)])
    save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    pool.run(saved_by_megatron, 4, padded, Layout(tp=4), "float32", tmp_path / "iter")
    out = convert(tmp_path / "iter", tmp_path / "out", "--trust-pickle", f"--model={source}")
    assert same(read(out), read(source))


@pytest.fixture(scope="module")
def megatron(model, tmp_path_factory):
    """`megatron(family, tied, multiple)`: the model as a Megatron-core checkpoint, its vocabulary padded."""
    made = {}

    def get(family: str, tied: bool, multiple: int) -> Path:
        key = (family, tied, multiple)
        if key not in made:
            out = tmp_path_factory.mktemp("converted") / "out"
            made[key] = convert(model(family, tied), out, f"--vocab-multiple={multiple}")
        return made[key]

    return get


@pytest.mark.parametrize("family, tied, layout", [*CASES, ("qwen3", True, Layout(pp=2, vpp=2))], ids=str)
def test_megatron_loads_what_was_made_of_a_model(pool, model, megatron, family, tied, layout):
    checkpoint = megatron(family, tied, 128 if layout.tp == 2 else 1) / "release"
    different = pool.run(loaded_by_megatron, layout.world_size, model(family, tied), layout, "float32", checkpoint)
    assert different == [[]] * layout.world_size


@pytest.mark.parametrize("multiple", [pytest.param(1, marks=pytest.mark.slow), 128])
@pytest.mark.parametrize("family, tied", MODELS, ids=MODEL_IDS)
def test_there_and_back_is_the_same_model(model, megatron, tmp_path, family, tied, multiple):
    source = model(family, tied)
    out = convert(megatron(family, tied, multiple), tmp_path / "out", "--trust-pickle")
    assert same(read(out), read(source))
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    ours = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    assert same(ours, AutoModelForCausalLM.from_pretrained(source, dtype="auto").state_dict())


@pytest.mark.parametrize(
    "layout, dtype, tied",
    [
        (Layout(), "float32", False),
        (Layout(tp=2, pp=2), "bfloat16", False),
        (Layout(pp=2, dp=2), "bfloat16", True),
        (Layout(tp=2, dp=2), "bfloat16", True),
    ],
    ids=str,
)
def test_our_checkpoint_becomes_what_the_run_exports(pool, model, answers, tmp_path, capsys, layout, dtype, tied):
    source = model("qwen3", tied)
    pool.run(trained_saved_and_exported, layout.world_size, source, layout, answers, dtype, tmp_path)
    exported = read(tmp_path / "exported")
    assert same(read(convert(tmp_path, tmp_path / "of_run")), exported)
    assert same(read(convert(tmp_path / "checkpoints" / "step-00000001", tmp_path / "of_step")), exported)
    first = read(convert(tmp_path / "checkpoints" / "step-00000000", tmp_path / "of_first"))
    assert same(first, {name: tensor.to(getattr(torch, dtype)) for name, tensor in read(source).items()})
    config = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("of_run", "exported")]
    assert config[0] == config[1] and config[0]["dtype"] == dtype
    # The masters themselves, and all the way through the other format.
    masters = read(convert(tmp_path, tmp_path / "masters", "--dtype=float32"))
    assert same({name: tensor.to(getattr(torch, dtype)) for name, tensor in masters.items()}, exported)
    megatron = convert(tmp_path / "checkpoints", tmp_path / "megatron", "--format=megatron", "--vocab-multiple=64")
    assert same(read(convert(megatron, tmp_path / "back", "--trust-pickle")), exported)
    capsys.readouterr()
    words = [f"--input={tmp_path}", f"--against={tmp_path / 'exported'}"]
    assert main(["diff", *words], {}) == 0 and "identical: " in capsys.readouterr().out
    words = [f"--input={tmp_path / 'checkpoints' / 'step-00000000'}", f"--against={tmp_path}"]
    assert main(["diff", *words], {}) == 0
    difference = capsys.readouterr().out
    assert (
        f"{3 * len(exported)} differ in their bits" in difference and "exp_avg_sq/" not in difference.splitlines()[-1]
    )
