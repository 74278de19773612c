"""Small complete runs of the program, started the way a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer, Qwen3Config

from rest_megatron.distributed.launch import free_port
from tests.paths import ROOT
from tests.tiny import SMALLEST_QWEN3

TOKENIZER = ROOT / "examples" / "quickstart" / "model"
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def make_run(directory: Path, **model_fields) -> list[str]:
    """A tiny model with the quickstart's tokenizer, four prompts, four demonstrations: the overrides to use them."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.save_pretrained(directory / "model")
    vocab_size = -(-len(tokenizer) // 4) * 4
    fields = {**SMALLEST_QWEN3, "vocab_size": vocab_size, "max_position_embeddings": 256}
    Qwen3Config(**{**fields, **model_fields}).save_pretrained(directory / "model")
    call = '<think> use </think>\n<tool_call>\n{"name": "set_alarm", "parameters": {"day": "Monday"}}\n</tool_call>'
    rows = [
        {
            "prompt": [{"role": "user", "content": f"alarm on Monday for {n}"}],
            "response": call,
            "reward_model": {"ground_truth": call, "style": "rule"},
        }
        for n in range(2, 6)
    ]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model.path": directory / "model",
        "model.random_init": "true",
        "model.dtype": "float32",
        "data.train": directory / "rows.jsonl",
        "sft.data": directory / "rows.jsonl",
        "run.dir": directory / "run",
        "data.max_prompt_tokens": 64,
        "rollout.max_new_tokens": 32,
        "rollout.prompts_per_step": 2,
        "rollout.group_size": 2,
        "train.steps": 2,
        "train.max_tokens_per_micro_batch": 100,
        "optim.lr": 1e-3,
        "sft.steps": 2,
        "sft.batch_size": 4,
        "run.device": "cpu",
    }
    return [f"{name}={value}" for name, value in settings.items()]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a fresh shell: no launcher's variables, one thread per rank."""
    kept = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES and not k.startswith("SLURM_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | extra


def run(command: list, cwd: Path, timeout: float = 240, **extra: str) -> subprocess.CompletedProcess:
    """Run a command to its end, output captured."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def program(*words: str) -> list[str]:
    """The program in one process."""
    return [sys.executable, "-m", "rest_megatron", *words]


def torchrun(ranks: int, *words: str) -> list[str]:
    """The program under torchrun."""
    return ["torchrun", f"--nproc-per-node={ranks}", f"--master-port={free_port()}", "-m", "rest_megatron", *words]


def metrics(run_dir: Path) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock, or on how many ranks there are."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "load/")) and "per_second" not in k} for row in rows
    ]
