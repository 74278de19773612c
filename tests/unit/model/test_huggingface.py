"""Reading Hugging Face safetensors: damaged or foreign directories are refused, slices are the right ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from rest_megatron.errors import CheckpointError
from rest_megatron.model.huggingface import INDEX, RandomWeights, Safetensors
from rest_megatron.model.mapping import Piece, expected_tensors

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A tiny model's directory that a test may damage."""
    return shutil.copytree(tiny_model(), tmp_path / "model")


@pytest.fixture
def sharded(copy):
    """The same weights in two files with an index."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, copy / file)
        weight_map.update(dict.fromkeys(part, file))
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return copy


def change(directory, **edits) -> None:
    """Rewrite the weights: a tensor replaces or adds one, None removes it. Dots are written as __."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in edits.items():
        tensors[name.replace("__", ".")] = tensor
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, directory / "model.safetensors")


def refused(directory) -> str:
    with pytest.raises(CheckpointError) as error:
        Safetensors(directory, AutoConfig.from_pretrained(directory))
    return str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused_by_name(copy, kept):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    message = refused(copy)
    assert str(path) in message and "cannot be read" in message and "copy it again" in message


def test_a_file_the_index_names_must_be_there(sharded):
    path = sharded / "model-00002-of-00002.safetensors"
    path.unlink()
    message = refused(sharded)
    assert str(path) in message and "missing" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": null}',
        '{"weight_map": {"model.norm.weight": 3}}',
        "\udcff",
    ],
)
def test_a_broken_index_is_refused(sharded, text):
    (sharded / INDEX).write_bytes(text.encode(errors="surrogateescape"))
    message = refused(sharded)
    assert str(sharded / INDEX) in message and "not a safetensors index" in message


def test_a_directory_without_safetensors_is_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    message = refused(copy)
    assert f"no .safetensors in {copy}" in message and "model.random_init=true" in message


def test_missing_tensors_are_named_and_counted(copy):
    change(copy, model__norm__weight=None)
    assert "lacks tensors (1 of 47): model.norm.weight" in refused(copy)
    change(copy, **{f"model__layers__{i}__input_layernorm__weight": None for i in range(4)})
    assert "lacks tensors (5 of 47)" in refused(copy) and "and 2 more" in refused(copy)


def test_unknown_tensors_are_refused(copy):
    change(copy, model__layers__0__mlp__experts__weight=torch.zeros(2))
    assert "has unknown tensors (1 of 47): model.layers.0.mlp.experts.weight" in refused(copy)


def test_misshapen_tensors_are_refused_with_both_shapes(copy):
    change(copy, lm_head__weight=torch.zeros(500, 63))
    assert "has misshapen tensors (1 of 47): lm_head.weight is (500, 63), config.json wants (500, 64)" in refused(copy)


def test_a_model_of_another_family_is_refused(tiny_model):
    with pytest.raises(CheckpointError, match="lacks tensors"):
        Safetensors(tiny_model("llama"), AutoConfig.from_pretrained(tiny_model("qwen3")))


def test_rotary_buffers_and_a_tied_head_are_ignored(tiny_model, tmp_path):
    directory = shutil.copytree(tiny_model(tied=True), tmp_path / "model")
    change(directory, lm_head__weight=torch.zeros(500, 64), model__rotary_emb__inv_freq=torch.zeros(16))
    Safetensors(directory, AutoConfig.from_pretrained(directory))


@pytest.mark.parametrize("directory", ["copy", "sharded"])
def test_a_rank_reads_its_slice(directory, request, tiny_model):
    path = request.getfixturevalue(directory)
    source = Safetensors(path, AutoConfig.from_pretrained(path))
    tensors = load_file(tiny_model() / "model.safetensors")
    down = "model.layers.2.mlp.down_proj.weight"
    for name, dim in ((EMBEDDING, 0), (down, 1), (NORM, None)):
        whole = tensors[name]
        for rank in range(4):
            want = whole if dim is None else whole.chunk(4, dim=dim)[rank]
            assert torch.equal(source.read(Piece(name, tuple(whole.shape), dim), rank, 4), want)


def test_random_weights_are_ones_zeros_and_slices_of_one_draw(tiny_model):
    hf = AutoConfig.from_pretrained(tiny_model("qwen2"))
    source = RandomWeights(7, hf)
    for name, shape in expected_tensors(hf).items():
        whole = source.read(Piece(name, shape, None if len(shape) == 1 else 0), 0, 1)
        assert tuple(whole.shape) == shape
        if len(shape) == 1:
            assert (whole == (0 if name.endswith("bias") else 1)).all()
            continue
        assert whole.std() == pytest.approx(hf.initializer_range, rel=0.1)
        parts = [source.read(Piece(name, shape, 1), rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat(parts, dim=1), whole)
