"""Damaged, foreign and contradictory inputs of the conversion tools: each is refused in words, none makes an output."""

import io
import json
import os
import pickle
import random
import shutil
from pathlib import PosixPath

import pytest
import torch
from safetensors.torch import load_file, save_file

from rest_megatron.cli import main
from rest_megatron.convert.metadata_pickle import load
from rest_megatron.convert.partial import partial_output
from rest_megatron.convert.tensor_file import read_header
from rest_megatron.convert.torch_dist import TorchDist
from rest_megatron.errors import CheckpointError
from tests.unit.checkpoint.step_directory import make_step

DEEP = "[" * 100_000


def run(capsys, *words) -> tuple[int, str]:
    """Exit code and all that was said."""
    capsys.readouterr()
    code = main([str(word) for word in words], {})
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture(scope="module")
def converted(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    assert main(["convert", f"--input={tiny_model()}", f"--output={out}", "--vocab-multiple=128"], {}) == 0
    return out


@pytest.fixture
def megatron(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "megatron")


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model(), tmp_path / "model")


@pytest.fixture
def tied(tiny_model, tmp_path):
    return shutil.copytree(tiny_model("qwen2", True), tmp_path / "tied")


def flip(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_one_flipped_bit_of_a_shard_is_refused(megatron, tmp_path, capsys):
    shard = megatron / "release" / "__0_0.distcp"
    flip(shard, 9000)
    for words in (["convert", f"--output={tmp_path / 'out'}"], ["verify"]):
        code, text = run(capsys, *words, f"--input={megatron}", "--trust-pickle")
        assert code == 4 and f"{shard} cannot be read" in text and "CRC-32" in text, text
    assert not (tmp_path / "out").exists()


def test_a_pickle_does_not_change_a_class(converted):
    def text(value: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()

    # getattr(pathlib, "PosixPath") with the state (None, {"suffix": ".json"}).
    planted = text("pathlib") + text("PosixPath") + pickle.STACK_GLOBAL + pickle.NONE + pickle.EMPTY_DICT
    planted += text("suffix") + text(".json") + pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD + pickle.POP
    whole = (converted / "release" / ".metadata").read_bytes()
    with pytest.raises(pickle.UnpicklingError, match="it changes a class"):
        load(io.BytesIO(whole[:2] + planted + whole[2:]))
    assert PosixPath("a.txt").suffix == ".txt"
    assert load(io.BytesIO(whole)) == pickle.loads(whole)


def test_metadata_with_flipped_bits_is_read_or_refused(converted, megatron):
    """Whatever the damage, no other error than the one that tells."""
    path = megatron / "release" / ".metadata"
    whole = (converted / "release" / ".metadata").read_bytes()
    draw, refused = random.Random(3), 0
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            TorchDist(path.parent, trust_pickle=True)
        except CheckpointError:
            refused += 1
    assert 20 < refused < 150


def test_a_head_that_is_not_the_embedding_it_is_tied_to_is_refused(tied, tmp_path, capsys):
    weights = load_file(tied / "model.safetensors")
    for change, expected in ((0.0, 0), (1.0, 4)):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + change
        save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
        code, text = run(capsys, "convert", f"--input={tied}", f"--output={tmp_path / f'out{change}'}")
        assert code == expected, text
    assert "but their values differ. Set tie_word_embeddings=false" in text and not (tmp_path / "out1.0").exists()


@pytest.mark.parametrize("vocab_size, expected", [(500, 0), (256, 0), (255, 4), (100, 4)])
def test_a_vocabulary_beyond_what_padding_explains_is_refused(converted, model, tmp_path, capsys, vocab_size, expected):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size}))
    words = [f"--input={converted}", f"--output={tmp_path / 'out'}", f"--model={model}", "--trust-pickle"]
    code, text = run(capsys, "convert", *words)
    assert code == expected, text
    said = f"{512 - vocab_size} of padding cut off" if code == 0 else f"{512 - vocab_size} more than vocab_size"
    assert said in text and (tmp_path / "out").exists() == (code == 0)


@pytest.mark.parametrize("multiple", [1024, 10**11])
def test_a_padding_that_could_not_be_read_again_is_not_written(model, tmp_path, capsys, multiple):
    code, text = run(
        capsys, "convert", f"--input={model}", f"--output={tmp_path / 'out'}", f"--vocab-multiple={multiple}"
    )
    assert code == 4 and "--vocab-multiple is too large" in text and not list(tmp_path.glob("out*"))


def test_two_conversions_do_not_share_an_output(model, tmp_path, capsys):
    with partial_output(tmp_path / "out", {}):
        code, text = run(capsys, "convert", f"--input={model}", f"--output={tmp_path / 'out'}")
    assert code == 2 and f"out.partial is in use by another job: process {os.getpid()} on" in text
    shutil.rmtree(tmp_path / "out.partial")
    assert run(capsys, "convert", f"--input={model}", f"--output={tmp_path / 'out'}")[0] == 0
    assert not list((tmp_path / "out").glob(".*"))


def test_companions_are_content_and_no_more(model, tmp_path, capsys):
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (model / "directory.json").mkdir()
    for name in (".hidden.json", "metadata.json", "manifest.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "tokenizer.json").chmod(0o444)
    out = tmp_path / "out"
    code, text = run(capsys, "convert", "--format=hf", f"--input={model}", f"--output={out}")
    assert code == 0 and "Hugging Face model" in text
    assert os.access(out / "tokenizer.json", os.W_OK) and (out / "tokenizer.json").stat().st_mode & 0o200
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
    assert not any((out / name).exists() for name in (".hidden.json", "metadata.json", "directory.json"))


@pytest.mark.parametrize("name", ["step-1.partial", "step-1.tmp", "step-1.old"])
def test_what_is_not_finished_is_not_taken(model, tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    model.rename(tmp_path / "run" / name)
    code, text = run(capsys, "verify", f"--input={tmp_path / 'run'}")
    assert code == 4 and "holds no weights" in text


def test_a_step_that_was_renamed_is_not_whole(tiny_model, tmp_path, capsys):
    make_step(tmp_path / "checkpoints" / "step-00000007", tiny_model(), 3)
    for words in (["verify"], ["convert", f"--output={tmp_path / 'out'}"]):
        code, text = run(capsys, *words, f"--input={tmp_path}")
        assert code == 4 and "holds step 3: it was renamed" in text


@pytest.mark.parametrize(
    "metadata",
    [
        {"DCP_SHARDING_INFO": text}
        for text in (
            "3",
            '["n"]',
            '{"n": {}}',
            '{"n": {"saved_offsets": 5}}',
            '{"n": {"saved_offsets": [0]}}',
            '{"n": {"saved_offsets": [0, -1]}}',
            DEEP,
        )
    ],
    ids=lambda metadata: metadata["DCP_SHARDING_INFO"][:40],
)
def test_shard_offsets_that_mean_nothing_are_refused(tmp_path, metadata):
    save_file({"n": torch.ones(2, 3)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(CheckpointError, match="x.safetensors cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_a_file_whose_metadata_is_null_is_read_or_refused(tmp_path):
    header = b'{"__metadata__":null,"n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    try:
        assert list(read_header(tmp_path / "x.safetensors")) == ["n"]
    except CheckpointError as error:
        assert "x.safetensors cannot be read" in str(error)


@pytest.mark.parametrize("index", [None, DEEP, "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_refused(model, capsys, index):
    path = model / "model.safetensors.index.json"
    path.mkdir() if index is None else path.write_text(index)
    code, text = run(capsys, "verify", f"--input={model}")
    assert code == 4 and "is not a safetensors index" in text


@pytest.mark.parametrize(
    "file, content", [("release/metadata.json", DEEP), ("latest_checkpointed_iteration.txt", "1" * 5000)]
)
def test_files_of_megatron_that_are_none_are_refused(megatron, capsys, file, content):
    (megatron / file).write_text(content)
    code, text = run(capsys, "verify", f"--input={megatron}", "--trust-pickle")
    assert code == 4 and len(text) < 2000


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--output=."], 4),
        (["--output=/"], 4),
        (["--output=" + "x" * 300], 2),
        (["--output=" + "x" * 250], 2),
        (["--model=" + "x" * 300], 2),
    ],
    ids=lambda words: str(words)[:20],
)
def test_paths_that_mean_nothing_are_refused(model, tmp_path, capsys, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    code, _ = run(capsys, "convert", f"--input={model}", *words, *([] if "output" in words[0] else ["--output=out"]))
    assert code == expected and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run(capsys, "verify", "--input=" + "x" * 300)[0] == 2
