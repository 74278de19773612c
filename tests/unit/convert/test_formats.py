"""The pieces of conversions: files a tensor at a time, Megatron's spellings, comparisons, and the progress."""

import io
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from rest_megatron.checkpoint.manifest import read_manifest
from rest_megatron.convert.compare import compare, max_difference
from rest_megatron.convert.megatron_format import MegatronWeights, parameters, read_parameter
from rest_megatron.convert.meter import Meter, size_text
from rest_megatron.convert.output_file import OutputFile
from rest_megatron.convert.tensor_file import Spec, read_header, read_tensor, same_bits, write_tensors
from rest_megatron.convert.weights import open_huggingface, open_state
from rest_megatron.errors import CheckpointError
from tests.unit.checkpoint.step_directory import make_step


class InMemory:
    """Tensors by name."""

    directory = "here"

    def __init__(self, tensors):
        self.values = tensors
        self.tensors = {name: Spec(tuple(x.shape), x.dtype) for name, x in tensors.items()}

    def read(self, name):
        return self.values[name]


def test_files_are_what_the_library_reads_and_reads_itself(tmp_path):
    tensors = {
        "odd": torch.randn(3, 5).bfloat16(),
        "wide": torch.randn(2, 2, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
        "half": torch.randn(7).half(),
    }
    path = tmp_path / "x.safetensors"
    with open(path, "wb", buffering=0) as file:
        out = OutputFile(file)
        source = InMemory(tensors)
        write_tensors(out, list(tensors), source.tensors, source.read)
    assert out.entry["bytes"] == path.stat().st_size
    theirs, header = load_file(path), read_header(path)
    assert theirs.keys() == tensors.keys() == header.keys()
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor) and theirs[name].dtype == tensor.dtype
        assert torch.equal(read_tensor(header[name]), tensor) and read_tensor(header[name]).dtype == tensor.dtype
        assert header[name].position % tensor.dtype.itemsize == 0


def test_a_file_cut_off_under_way_is_refused(tiny_model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((tiny_model() / "model.safetensors").read_bytes())
    header = read_header(path)
    last = max(header.values(), key=lambda stored: stored.position)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="ends within a tensor"):
        read_tensor(last)


@pytest.mark.parametrize("family, tied", [("qwen3", False), ("qwen2", True), ("llama", False)])
@pytest.mark.parametrize("norms", ["fused", "apart"])
@pytest.mark.parametrize("rows", [500, 512])
def test_both_spellings_of_the_norms_are_read(tiny_model, family, tied, norms, rows):
    directory = tiny_model(family, tied)
    hf = AutoConfig.from_pretrained(directory)
    source = open_huggingface(directory, hf)
    fused = {
        "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
        "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    }
    found = {}
    for name, pieces in parameters(hf).items():
        tensor = read_parameter(
            source, pieces, hf, rows if name[:3] in ("emb", "out") else sum(p.shape[0] for p in pieces)
        )
        for ours, theirs in fused.items() if norms == "fused" else ():
            name = name.replace(ours, theirs)
        found[name] = tensor
    assert compare(source, MegatronWeights(InMemory(found), hf)).identical


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"decoder.final_layernorm.weight": None}, r"lacks tensors \(1 of \d+\): decoder.final_layernorm.weight"),
        ({"mtp.layers.0.eh_proj.weight": torch.ones(2)}, "has unknown tensors .*: mtp.layers.0.eh_proj.weight"),
        ({"embedding.word_embeddings.weight": torch.ones(499, 64)}, r"is \(499, 64\), config.json wants \(500, 64\)"),
        ({"embedding.word_embeddings.weight": torch.ones(512, 60)}, r"is \(500, 60\), config.json wants \(500, 64\)"),
    ],
)
def test_a_megatron_checkpoint_of_another_model_is_refused(tiny_model, edit, message):
    hf = AutoConfig.from_pretrained(tiny_model())
    source = open_huggingface(tiny_model(), hf)
    found = {
        name: read_parameter(source, pieces, hf, sum(p.shape[0] for p in pieces))
        for name, pieces in parameters(hf).items()
    }
    found = {name: tensor for name, tensor in (found | edit).items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        MegatronWeights(InMemory(found), hf)


def test_nothing_is_the_same_but_the_same_bits():
    a = torch.tensor([1.0, float("nan"), 0.0, float("inf")])
    assert same_bits(a, a.clone()) and max_difference(a, a.clone()) == 0.0
    zero = torch.tensor([1.0, float("nan"), -0.0, float("inf")])
    assert not same_bits(a, zero) and max_difference(a, zero) == 0.0
    assert not same_bits(a, a.bfloat16()) and max_difference(a, a.bfloat16()) == 0.0
    assert max_difference(a, torch.tensor([1.0, 2.0, 0.0, float("inf")])) != max_difference(a, a)
    assert max_difference(a, torch.tensor([1.0, float("nan"), 0.0, -float("inf")])) == float("inf")
    assert max_difference(torch.tensor([1.0, 3.0]), torch.tensor([1.5, 3.0]).half()) == 0.5


def test_pieces_that_do_not_fill_a_tensor_are_refused(tiny_model, tmp_path):
    step = make_step(tmp_path / "step-00000001", tiny_model(), 1)
    manifest = read_manifest(step)
    assert len(open_state(step, manifest).tensors) == 3 * 47
    sorted((step / "state").iterdir())[1].unlink()
    with pytest.raises(CheckpointError, match="the pieces of .* have 64000 bytes, the tensor 128000"):
        open_state(step, manifest)


def test_the_progress_stays_in_place_on_a_terminal_and_comes_now_and_then_elsewhere():
    def shown(terminal: bool) -> str:
        stream, now = io.StringIO(), SimpleNamespace(seconds=0.0)
        stream.isatty = lambda: terminal
        meter = Meter(stream, 100 * 2**20, clock=lambda: now.seconds)
        for _ in range(100):
            now.seconds += 1.0
            meter.add(2**20)
        meter.close()
        return stream.getvalue()

    assert shown(False).splitlines() == [
        " 30% of 100.0 MiB  1.0 MiB/s  1m10s left",
        " 60% of 100.0 MiB  1.0 MiB/s  40s left",
        " 90% of 100.0 MiB  1.0 MiB/s  10s left",
    ]
    assert shown(True).count("\r") == 101 and "\n" not in shown(True) and shown(True).endswith("\r\x1b[2K")


def test_sizes_are_said_in_units_of_their_own():
    assert [size_text(n) for n in (0, 1023, 1536, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 MiB",
        "5120.0 GiB",
    ]
