"""The memory of a conversion follows its largest tensor, not the size of the model."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config

from rest_megatron.model.mapping import expected_tensors
from tests.paths import ROOT

MODEL_BYTES, LIMIT = 400 * 2**20, 200 * 2**20
# The kernel keeps the highest resident size of a process, and forgets it when it is told.
SCRIPT = """
import sys
from importlib import import_module
from rest_megatron.cli import parse

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

for words in sys.argv[1:]:
    request = parse(words.split())
    module = import_module(request.command.module)
    before = memory("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    module.main(request.options, sys.stderr)
    print("peak", request.command.name, memory("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("large")
    hf = Qwen3Config(
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        tie_word_embeddings=False,
    )
    hf.save_pretrained(directory)
    tensors = {name: torch.randn(shape) for name, shape in expected_tensors(hf).items()}
    assert sum(tensor.nbytes for tensor in tensors.values()) > MODEL_BYTES
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_conversion_holds_a_tensor_at_a_time(model, tmp_path):
    commands = [
        f"convert --input={model} --output={tmp_path}/megatron --vocab-multiple=1000",
        f"convert --input={tmp_path}/megatron --output={tmp_path}/back --trust-pickle",
        f"convert --input={model} --output={tmp_path}/narrow --format=hf --dtype=bfloat16",
        f"diff --input={tmp_path}/megatron --against={tmp_path}/back --trust-pickle",
        f"verify --input={model}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = [line.split() for line in done.stdout.splitlines() if line.startswith("peak ")]
    assert [command for _, command, _ in peaks] == ["convert", "convert", "convert", "diff", "verify"]
    assert all(int(taken) < LIMIT for _, _, taken in peaks), peaks
