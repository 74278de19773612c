"""The files of a run that a command checks before it starts: a model without weights, and rows."""

import json
from dataclasses import dataclass
from pathlib import Path

MODEL = {
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
}
GROUND_TRUTH = "<think> x </think>\n<response> hi </response>"
ROW = {"prompt": [{"role": "user", "content": "hello"}], "reward_model": {"ground_truth": GROUND_TRUTH}}


@dataclass(frozen=True)
class RunFiles:
    """A model directory without a tokenizer, a file of one prompt, and the overrides that name them."""

    model: Path
    rows: Path
    overrides: list[str]


def write_run_files(directory: Path) -> RunFiles:
    """Write them to `directory`; run.dir does not exist yet."""
    model, rows = directory / "model", directory / "rows.jsonl"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    (model / "model.safetensors").write_bytes(b"")
    rows.write_text(json.dumps(ROW) + "\n")
    settings = {"model.path": model, "data.train": rows, "sft.data": rows, "run.dir": directory / "new" / "run"}
    return RunFiles(model, rows, [f"{key}={value}" for key, value in settings.items()])
