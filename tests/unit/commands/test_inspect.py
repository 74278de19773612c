"""`inspect`, `verify` and `diff`: what a checkpoint is, whether it is whole, and how two differ."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_megatron.cli import main
from tests.unit.checkpoint.step_directory import make_step

NORM, DOWN = "model.norm.weight", "model.layers.2.mlp.down_proj.weight"


def run(capsys, *words) -> tuple[int, str]:
    """Exit code and all that was said."""
    capsys.readouterr()
    code = main([str(word) for word in words], {})
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("qwen2", True)


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


@pytest.fixture(scope="module")
def megatron(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    assert main(["convert", f"--input={model}", f"--output={out}"], {}) == 0
    return out


def change(directory, **edits) -> None:
    """Rewrite the weights: a tensor replaces or adds one, None removes it. Dots are written as __."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in edits.items():
        tensors[name.replace("__", ".")] = tensor
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def facts(text: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in text.splitlines())


def test_inspect_says_what_our_checkpoint_holds(model, tmp_path, capsys):
    for step in (3, 4):
        make_step(tmp_path / "checkpoints" / f"step-{step:08d}", model, step)
    (tmp_path / "checkpoints" / "step-00000004" / "manifest.json").write_text("{")
    code, text = run(capsys, "inspect", f"--input={tmp_path}")
    found = facts(text.split("\n", 1)[1])
    assert code == 0 and text.startswith("step-00000004 is skipped: ")
    assert found["kind"] == "checkpoint of rest_megatron" and found["step"] == "3"
    assert "tensor_model_parallel_size 2, world_size 2" in found["layout"] and "virtual" not in found["layout"]
    assert found["versions"] == "megatron-core 0.16.1, torch 2.13.0"
    assert found["model"] == "qwen2, 4 layers, hidden size 64, tied" and found["vocabulary"] == "500"
    assert found["weights"] == "bfloat16, rounded from the masters"
    assert found["master"] == found["exp_avg"] == found["exp_avg_sq"]
    count = len([name for name in load_file(model / "model.safetensors") if name != "lm_head.weight"])
    assert found["master"].startswith(f"{count} tensors, ") and found["master"].endswith(" KiB, float32")
    assert found["train.cursor"] == "[3, 7]" and found["actor.version"] == "3"
    assert found["train.text"].endswith("xxx...") and len(found["train.text"]) < 110


def test_inspect_says_what_others_hold(model, megatron, capsys):
    code, text = run(capsys, "inspect", f"--input={model}")
    found = facts(text)
    assert code == 0 and found["kind"] == "Hugging Face model" and found["tensors"].endswith(", float32")
    code, text = run(capsys, "inspect", f"--input={megatron}")
    assert code == 0 and "not looked at: .metadata is a pickle" in facts(text)["tensors"]
    code, text = run(capsys, "inspect", f"--input={megatron}", "--trust-pickle")
    found = facts(text)
    assert code == 0 and found["directory"] == str(megatron / "release") and found["layers"] == "stacked"
    assert found["tensors"].endswith(", float32") and found["others"].startswith("0 tensors")


def test_verify_says_of_every_checkpoint_whether_it_is_whole(model, tmp_path, capsys):
    checkpoints = tmp_path / "checkpoints"
    steps = [make_step(checkpoints / f"step-{step:08d}", model, step) for step in (1, 2, 3)]
    code, text = run(capsys, "verify", f"--input={tmp_path}")
    assert code == 0 and [line.endswith(": whole") for line in text.splitlines()] == [True] * 3
    shard = next((steps[1] / "state").iterdir())
    content = bytearray(shard.read_bytes())
    content[-100] ^= 4
    shard.write_bytes(content)
    (steps[0] / "hf" / "config.json").unlink()
    code, text = run(capsys, "verify", f"--input={tmp_path}")
    assert code == 4 and f"{steps[2]}: whole\n" in text and f"{steps[1]}: not whole: {shard} has the SHA" in text
    assert f"{steps[0]}: not whole: " in text and f"2 of 3 checkpoints in {checkpoints} are not whole" in text
    assert run(capsys, "verify", f"--input={steps[2]}")[0] == 0
    assert run(capsys, "verify", f"--input={steps[1]}")[0] == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_verify_finds_a_number_that_is_none(copy, capsys, bad):
    assert run(capsys, "verify", f"--input={copy}")[0] == 0
    weight = load_file(copy / "model.safetensors")[DOWN]
    weight[3, 5] = bad
    change(copy, **{DOWN.replace(".", "__"): weight})
    code, text = run(capsys, "verify", f"--input={copy}")
    assert code == 4 and f"NaN or infinity in {DOWN}" in text


def test_verify_finds_what_is_missing_and_an_index_that_is_wrong(copy, capsys):
    names = sorted(load_file(copy / "model.safetensors"))
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    assert run(capsys, "verify", f"--input={copy}")[0] == 0
    change(copy, model__norm__weight=None)
    code, text = run(capsys, "verify", f"--input={copy}")
    assert code == 4 and f"{NORM} is in model.safetensors, but it is in None" in text
    (copy / "model.safetensors.index.json").unlink()
    code, text = run(capsys, "verify", f"--input={copy}")
    assert code == 4 and f"lacks tensors (1 of {len(names)}): {NORM}" in text


def test_verify_reads_every_number_of_a_megatron_checkpoint(megatron, capsys):
    assert run(capsys, "verify", f"--input={megatron}")[0] == 4
    code, text = run(capsys, "verify", f"--input={megatron}", "--trust-pickle")
    assert code == 0 and f"{megatron / 'release'}: whole, a Megatron-core checkpoint" in text


def test_diff_of_the_same_is_identical_whatever_the_format(model, megatron, tmp_path, capsys):
    step = make_step(tmp_path / "step-00000001", model, 1, "float32")
    for first, second in ((model, model), (model, megatron), (step, megatron), (step, model), (step, step)):
        code, text = run(capsys, "diff", f"--input={first}", f"--against={second}", "--trust-pickle")
        assert code == 0 and text.splitlines()[-1].startswith("identical: "), text


def test_diff_names_what_differs_and_by_how_much(model, copy, capsys):
    tensors = load_file(copy / "model.safetensors")
    down = tensors[DOWN].clone()
    down[0, 0], down[1, 1] = down[0, 0] + 0.5, -2.0
    largest = float((down.double() - tensors[DOWN].double()).abs().max())
    norm = tensors[NORM].clone()
    norm[7] = torch.nan
    change(copy, **{DOWN.replace(".", "__"): down, NORM.replace(".", "__"): norm})
    code, text = run(capsys, "diff", f"--input={model}", f"--against={copy}")
    lines = text.splitlines()[2:]
    assert (
        code == 0 and lines[0] == f"{len(tensors) - 2 - ('lm_head.weight' in tensors)} tensors are the same bit for bit"
    )
    assert lines[1:] == [
        "2 differ in their bits; max |a - b| is nan. The worst:",
        f"  {NORM}  nan",
        f"  {DOWN}  {largest:.6g}",
    ]


def test_diff_of_different_models_names_tensors_shapes_and_dtypes(tiny_model, model, megatron, copy, capsys):
    code, text = run(capsys, "diff", f"--input={model}", f"--against={tiny_model('llama')}")
    assert code == 0 and "12 only in the first: model.layers.0.self_attn.q_proj.bias; " in text
    assert "1 only in the second: lm_head.weight" in text and "; and 7 more" in text
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    embedding = load_file(copy / "model.safetensors")["model.embed_tokens.weight"][:400].clone()
    change(copy, model__embed_tokens__weight=embedding, model__norm__weight=torch.ones(64, dtype=torch.bfloat16))
    code, text = run(capsys, "diff", f"--input={megatron}", f"--against={copy}", "--trust-pickle")
    assert "1 of different shapes: model.embed_tokens.weight (500, 64) and (400, 64)" in text
    assert f"1 of different dtypes: {NORM} torch.float32 and torch.bfloat16" in text
    assert "1 differ in their bits; max |a - b|" in text
