"""Bad input ends before any training, with an exit code and a message that says what to do."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rest_megatron import cli
from tests.faults.jobs import Job
from tests.system.runs import make_run


def refuse(capsys, words: list[str], environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and message of a run that must not start."""
    code = cli.main(["train", *words], environ or {})
    return code, capsys.readouterr().err


def rank_of(world_size: int) -> dict[str, str]:
    return {
        "RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }


@pytest.mark.parametrize(
    ("override", "world_size", "code", "fragments"),
    [
        ("data.train=nowhere.jsonl", 1, 2, ["nowhere.jsonl"]),
        ("model.path=nowhere", 1, 2, ["nowhere"]),
        ("optim.weight_dekay=1", 1, 2, ["optim.weight_dekay", "optim.weight_decay"]),
        ("parallel.tensor_model_parallel_size=2", 3, 2, ["world size (3)", "TP (2)"]),
        ("parallel.tensor_model_parallel_size=3", 3, 2, ["num_attention_heads=4", "1, 2"]),
        ("parallel.pipeline_model_parallel_size=3", 3, 2, ["num_hidden_layers=4"]),
        ("train.mini_batch_size=3", 1, 2, ["mini_batch_size", "4"]),
        ("train.max_tokens_per_micro_batch=10", 1, 2, ["max_tokens_per_micro_batch", "96"]),
        ("deepspeed={zero_optimization: {stage: 3}}", 1, 2, ["stage", "hangs"]),
        ("deepspeed={gradient_clipping: 0.5}", 1, 2, ["0.5", "1.0"]),
        ("megatron={num_layer: 3}", 1, 2, ["num_layer"]),
    ],
)
def test_a_setting_that_cannot_work_is_refused(tmp_path, capsys, override, world_size, code, fragments):
    got, message = refuse(capsys, [*make_run(tmp_path), override], rank_of(world_size))
    assert got == code, message
    assert all(fragment in message for fragment in fragments), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "fragments"),
    [
        ("not json", ["row 4", "line 5"]),
        (json.dumps({"prompt": "text", "reward_model": {"ground_truth": "x"}}), ["row 4"]),
        (
            json.dumps(
                {"prompt": [{"role": "user", "content": "hi"}], "reward_model": {"ground_truth": "<tool_call>"}}
            ),
            ["row 4", "ground_truth"],
        ),
        (
            json.dumps(
                {
                    "prompt": [{"role": "user", "content": "tea " * 99}],
                    "reward_model": {"ground_truth": "<think> a </think>\n<response> b </response>"},
                }
            ),
            ["row 4", "data.max_prompt_tokens=64"],
        ),
    ],
)
def test_a_malformed_row_is_named(tmp_path, capsys, row, fragments):
    words = make_run(tmp_path)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(row + "\n")
    code, message = refuse(capsys, words)
    assert code == 3
    assert all(fragment in message for fragment in fragments), message
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path, capsys):
    code, message = refuse(capsys, make_run(tmp_path, vocab_size=64))
    assert code == 2
    assert "vocab_size is 64" in message or "vocab_size=64" in message
    assert not (tmp_path / "run").exists()


def test_truncated_weights_are_refused(tmp_path):
    words = make_run(tmp_path)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model")).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    job = Job(["train", *words, "model.random_init=false"], tmp_path)
    assert job.wait() == [4]
    assert "model.safetensors" in job.output() and "truncated" in job.output()
    assert "Traceback" not in job.output()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
