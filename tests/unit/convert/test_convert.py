"""`convert`: what it refuses, how it goes on after a kill, and that a wrong output never gets its name."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_megatron.cli import main
from rest_megatron.convert.output_file import OutputFile
from rest_megatron.convert.partial import Partial
from rest_megatron.convert.recognise import HUGGING_FACE, MEGATRON
from rest_megatron.errors import CheckpointError
from tests.forks import CONTEXT
from tests.paths import ROOT
from tests.tensors import read, same
from tests.unit.checkpoint.step_directory import make_step
from tests.unit.convert.small_files import make


def run(capsys, *words) -> tuple[int, str]:
    """Exit code and all that was said."""
    code = main([str(word) for word in words], {})
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_model_is_cut_into_files_and_cast(tiny_model, tmp_path, capsys):
    made = make(tiny_model(), tmp_path / "out", HUGGING_FACE, dtype=torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in read(tiny_model()).items()}
    assert same(read(tmp_path / "out"), expected) and made.tensors == len(expected)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert index["metadata"]["total_size"] == made.size == sum(x.nbytes for x in expected.values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # And by the command, back into one file.
    words = ["--format=hf", "--dtype=float32"]
    code, text = run(capsys, "convert", f"--input={tmp_path / 'out'}", f"--output={tmp_path / 'again'}", *words)
    assert code == 0 and f"output  {tmp_path / 'again'}: Hugging Face model, {len(expected)} tensors" in text
    assert same(load_file(tmp_path / "again" / "model.safetensors"), {n: x.float() for n, x in expected.items()})


@pytest.mark.parametrize("tied", [False, True])
def test_masters_are_rounded_once(tiny_model, tmp_path, tied):
    step = make_step(tmp_path / "step-00000003", tiny_model("qwen2", tied))
    masters = read(tiny_model("qwen2", tied))
    make(step, tmp_path / "out", HUGGING_FACE)
    assert same(read(tmp_path / "out"), {name: tensor.bfloat16() for name, tensor in masters.items()})
    make(step, tmp_path / "masters", HUGGING_FACE, dtype=torch.float32)
    assert same(read(tmp_path / "masters"), masters)


def test_the_newest_whole_checkpoint_of_a_run_is_taken(tiny_model, tmp_path, capsys):
    run_dir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    for step, family in ((1, "qwen3"), (2, "qwen2"), (3, "qwen2")):
        make_step(checkpoints / f"step-{step:08d}", tiny_model(family), step)
    (checkpoints / "step-00000004.tmp").mkdir()
    shard = next((checkpoints / "step-00000003" / "state").iterdir())
    shard.write_bytes(bytes(shard.stat().st_size))
    code, text = run(capsys, "convert", f"--input={run_dir}", f"--output={tmp_path / 'out'}", "--dtype=float32")
    assert code == 0 and f"step-00000003 is skipped: {shard} has the SHA-256" in text
    assert same(read(tmp_path / "out"), read(tiny_model("qwen2")))
    code, text = run(capsys, "convert", f"--input={checkpoints / 'step-00000003'}", f"--output={tmp_path / 'no'}")
    assert code == 4 and str(shard) in text and not (tmp_path / "no").exists()


def make_until_killed(files: int, source: Path, output: Path, kind: str) -> None:
    """A conversion that is killed in the middle of a file, after as many whole ones."""
    add, numbers = Partial.add, itertools.count()

    def die(file):
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    def killing(self, name, write):
        return add(self, name, die if next(numbers) == files else write)

    with mock.patch.object(Partial, "add", killing):
        make(source, output, kind)


@pytest.mark.parametrize("kind", [HUGGING_FACE, MEGATRON])
@pytest.mark.parametrize("files", [1, 4])
def test_a_killed_conversion_resumes_with_the_files_it_has(tiny_model, tmp_path, kind, files):
    killed = CONTEXT.Process(target=make_until_killed, args=(files, tiny_model(), tmp_path / "out", kind))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    partial = tmp_path / "out.partial"
    assert len(list(partial.rglob("*.tmp"))) == 1
    damaged = sorted(path for path in partial.rglob("*") if path.suffix in (".safetensors", ".distcp"))[0]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    made = make(tiny_model(), tmp_path / "out", kind)
    assert made.reused == files - 1 and not partial.exists()
    make(tiny_model(), tmp_path / "straight", kind)
    names = sorted(path.relative_to(tmp_path / "straight") for path in (tmp_path / "straight").rglob("*"))
    assert names == sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    for name in names:
        if (tmp_path / "out" / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


def test_a_kill_before_the_first_file_and_before_the_name_lose_nothing(tiny_model, tmp_path):
    with mock.patch("rest_megatron.utils.files.os.rename", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            make(tiny_model(), tmp_path / "out", HUGGING_FACE)
    assert sorted(path.name for path in (tmp_path / "out.partial").iterdir()) == [".journal.json.tmp", ".lock"]
    with mock.patch("rest_megatron.convert.partial.Partial.complete", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            make(tiny_model(), tmp_path / "out", HUGGING_FACE)
    written = len(list((tmp_path / "out.partial").glob("model*")))
    assert make(tiny_model(), tmp_path / "out", HUGGING_FACE).reused == written > 3
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("kind", [HUGGING_FACE, MEGATRON])
def test_an_output_that_reads_differently_never_gets_its_name(tiny_model, tmp_path, kind):
    write = OutputFile.write

    def flipping(self, content):
        content = bytearray(content)
        if len(content) > 60_000:  # a matrix, not what says where it is
            content[5000] ^= 1
        return write(self, content)

    with (
        mock.patch.object(OutputFile, "write", flipping),
        pytest.raises(CheckpointError, match="read again, is not what was written"),
    ):
        make(tiny_model(), tmp_path / "out", kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [HUGGING_FACE, MEGATRON])
def test_a_full_disk_leaves_a_partial_that_can_be_resumed(tiny_model, tmp_path, kind):
    write, room = OutputFile.write, 300_000

    def filling(self, content):
        nonlocal room
        room -= len(memoryview(content).cast("B"))
        if room < 0:
            raise OSError(28, "No space left on device")
        return write(self, content)

    with mock.patch.object(OutputFile, "write", filling), pytest.raises(CheckpointError, match="No space left"):
        make(tiny_model(), tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()
    assert make(tiny_model(), tmp_path / "out", kind).reused > 0


def test_nothing_is_overwritten(tiny_model, tmp_path, capsys):
    for name in ("out", "other.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    code, text = run(capsys, "convert", f"--input={tiny_model()}", f"--output={tmp_path / 'out'}")
    assert code == 4 and f"--output {tmp_path / 'out'} exists" in text
    code, text = run(capsys, "convert", f"--input={tiny_model()}", f"--output={tmp_path / 'other'}")
    assert code == 4 and "is not an unfinished conversion" in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other.partial", "out", "thesis.txt", "thesis.txt"]


@pytest.mark.parametrize("change", ["dtype", "input", "tokenizer", "kind"])
def test_what_another_conversion_left_is_refused(tiny_model, tmp_path, change):
    source = shutil.copytree(tiny_model(), tmp_path / "model")
    with mock.patch("rest_megatron.convert.convert.write_companions", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            make(source, tmp_path / "out", HUGGING_FACE)
    if change == "input":
        os.utime(source / "model.safetensors", (1, 1))
    if change == "tokenizer":
        (source / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="left by a conversion of something else"):
        kind = MEGATRON if change == "kind" else HUGGING_FACE
        make(source, tmp_path / "out", kind, dtype=torch.bfloat16 if change == "dtype" else None)


def test_weights_and_config_of_different_models_are_refused(tiny_model, tmp_path, capsys):
    source = shutil.copytree(tiny_model(), tmp_path / "model")
    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(63)
    save_file(weights, source / "model.safetensors")
    code, text = run(capsys, "convert", f"--input={source}", f"--output={tmp_path / 'out'}")
    assert code == 4 and "misshapen tensors (1 of 47): model.norm.weight is (63,), config.json wants (64,)" in text
    make(tiny_model(), tmp_path / "megatron", MEGATRON)
    words = [f"--input={tmp_path / 'megatron'}", f"--output={tmp_path / 'out'}", "--trust-pickle"]
    code, text = run(capsys, "convert", *words, f"--model={tiny_model('llama')}")
    assert code == 4 and "has unknown tensors" in text and "decoder.layers.0.self_attention.q_layernorm.weight" in text
    code, text = run(capsys, "convert", *words, f"--model={tiny_model(tied=True)}")
    assert code == 4 and "has unknown tensors (1 of 34): output_layer.weight" in text
    config = json.loads((tiny_model() / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "vocab_size": 504}))
    code, text = run(capsys, "convert", *words, f"--model={source}")
    assert code == 4 and "embedding.word_embeddings.weight is (500, 64), config.json wants (504, 64)" in text
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "config", ["", "{}", '{"model_type": "qwen3", "vocab_size": "many"}', '{"model_type": "gpt2"}']
)
def test_a_config_that_is_none_of_ours_is_refused(tiny_model, tmp_path, capsys, config):
    source = shutil.copytree(tiny_model(), tmp_path / "model")
    (source / "config.json").write_text(config)
    code, text = run(capsys, "convert", f"--input={source}", f"--output={tmp_path / 'out'}")
    assert code == 4 and f"{source / 'config.json'}" in text and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--format=gguf"], "--format: 'gguf' is not one of hf, megatron"),
        (["--dtype=float16"], "--dtype: 'float16' is not one of bfloat16, float32; did you mean bfloat16?"),
        (["--trust-pickle=yes"], "--trust-pickle takes no value"),
        (["--vocab-multiple=0"], "--vocab-multiple: '0' is not a whole number, 1 or more"),
        (["--format=hf", "--vocab-multiple=8"], "--vocab-multiple pads the vocabulary of --format megatron"),
    ],
)
def test_words_that_mean_nothing_are_refused(tiny_model, tmp_path, capsys, words, message):
    code, text = run(capsys, "convert", f"--input={tiny_model()}", f"--output={tmp_path / 'out'}", *words)
    assert code == 2 and message in text and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["convert", "inspect", "verify", "diff"])
def test_the_tools_are_the_commands(tiny_model, name):
    tool = next((ROOT / "tools").glob(f"{name}_*.py"))
    done = subprocess.run([sys.executable, str(tool)], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"{name}: needs INPUT" in done.stderr
