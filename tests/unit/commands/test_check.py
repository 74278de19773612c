"""The `check` command."""

import json
import sys

import pytest

from rest_megatron import cli
from tests.unit.run_files import GROUND_TRUTH, MODEL, ROW, write_run_files


@pytest.fixture
def files(tmp_path):
    return write_run_files(tmp_path)


@pytest.fixture
def tokenizer(files):
    """A byte-level tokenizer with a chat template in the model directory; ids 0..257."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(files.model)


def test_check_reports_the_machine_and_ends_with_ok(files, tokenizer, capsys):
    files.rows.write_text(json.dumps(ROW | {"response": GROUND_TRUTH}) + "\n")
    tensor = "parallel.tensor_model_parallel_size=2"
    words = ["check", "--world-size", "4", tensor, "model.random_init=true"]
    assert cli.main([*words, *files.overrides], {}) == 0
    out = capsys.readouterr().out
    table = {line[:20].strip(): line[20:].strip() for line in out.splitlines()}
    assert out.endswith("\nok\n")
    assert table["configuration"] == "valid for 4 ranks: TP 2 x PP 1 x DP 2"
    assert table["tokenizer"] == "token ids 0..257 of a vocabulary of 400"
    assert table["data.train"].startswith("1 prompt ") and table["sft.data"].startswith("1 demonstration ")
    assert table["torch"] == sys.modules["torch"].__version__ and table["python"].startswith(sys.version.split()[0])
    assert {
        "megatron-core",
        "deepspeed",
        "transformers",
        "triton",
        "Transformer Engine",
        "Apex",
        "CUDA",
    } <= table.keys()
    assert not (files.model.parent / "new").exists()


@pytest.mark.parametrize(
    "breakage, code, fragment",
    [
        (lambda f: (f.model / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 256})), 2, "token id 257"),
        (
            lambda f: (f.model / "config.json").write_text(json.dumps(MODEL | {"layer_types": []})),
            4,
            "config.json cannot",
        ),
        (lambda f: (f.model / "tokenizer.json").write_text("{"), 4, "the tokenizer in model.path"),
        (lambda f: f.rows.write_text("{}\n"), 3, "rows.jsonl"),
        (lambda f: f.rows.write_text(json.dumps(ROW | {"reward_model": {"ground_truth": "x"}})), 3, "ground truth"),
        (lambda f: (f.model.parent / "new").write_text(""), 2, "run.dir="),
        (lambda f: f.rows.unlink(), 2, "data.train="),
    ],
)
def test_check_finds_what_would_stop_the_job(files, tokenizer, capsys, breakage, code, fragment):
    breakage(files)
    overrides = [text for text in files.overrides if not text.startswith("sft")]
    assert cli.main(["check", "model.random_init=true", *overrides], {}) == code
    captured = capsys.readouterr()
    assert fragment in captured.err and not captured.out.endswith("ok\n")


def test_check_reads_the_headers_of_the_weights(files, tokenizer, capsys):
    assert cli.main(["check", *files.overrides], {}) == 4
    assert "model.safetensors cannot be read" in capsys.readouterr().err


def test_check_refuses_the_directory_of_an_earlier_run(files, tokenizer, capsys):
    run_dir = files.model.parent / "new" / "run"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("{}")
    assert cli.main(["check", *files.overrides, "model.random_init=true", "sft.data=''"], {}) == 2
    assert "metrics.jsonl of an earlier run" in capsys.readouterr().err
