"""Seconds to save and load a checkpoint beside DeepSpeed's own, of the same engine, on the same disk.

    python benchmarks/checkpoint.py

Ours is synced to the disk, hashed, and verified when it is loaded; DeepSpeed's is not. In turns, in one process; the
median of all rounds on the clock counts, for a disk is what is timed.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.floors import hardware_name
from benchmarks.kernels import positive
from benchmarks.origin import origin
from benchmarks.rollout import PACKAGES
from rest_megatron.actor.actor import Actor
from rest_megatron.checkpoint.store import CheckpointStore
from rest_megatron.config.schema import Config, ModelConfig, ParallelConfig, RunConfig
from rest_megatron.distributed.launch import Launch, free_port
from rest_megatron.distributed.startup import initialize, shutdown
from rest_megatron.model.huggingface import RandomWeights
from rest_megatron.types import Trajectory

LAYERS = 4


def open_actor(hidden_size: int, vocab_size: int) -> Actor:
    """One process's actor after one step, its moments filled."""
    hf = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        tie_word_embeddings=True,
    )
    parallel = initialize(
        Launch(0, 1, 0, 1, "127.0.0.1", free_port(), "single"), ParallelConfig(), torch.device("cpu"), 0
    )
    config = Config(run=RunConfig(device="cpu"), model=ModelConfig(dtype="float32"))
    actor = Actor(config, hf, RandomWeights(0, hf), parallel, total_steps=10)
    actor.supervised_step([Trajectory((1, 2, 3), (4, 5, 6))], 3)
    return actor


def contestants(actor: Actor, directory: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """Name -> {"save", "load"}."""
    store = CheckpointStore(
        directory / "ours", actor, actor.parallel, actor.config.checkpoint, lambda path: path.mkdir(exist_ok=True)
    )
    engine, theirs = actor.zero.engine, str(directory / "deepspeed")
    return {
        "ours": {
            "save": lambda: store.save(1, {}),
            "load": lambda: store.load(directory / "ours" / "step-00000001"),
        },
        "deepspeed": {
            "save": lambda: engine.save_checkpoint(theirs, tag="step"),
            "load": lambda: engine.load_checkpoint(theirs, tag="step"),
        },
    }


def measure(actor: Actor, directory: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of each contestant's save and load, after a round that is not counted."""
    found = contestants(actor, directory)
    seconds: dict[str, dict[str, list[float]]] = {name: {"save": [], "load": []} for name in found}
    for number in range(rounds + 1):
        for name, does in found.items():
            for what in ("save", "load"):
                started = time.perf_counter()
                does[what]()
                if number:
                    seconds[name][what].append(time.perf_counter() - started)
    return {name: {what: statistics.median(all_) for what, all_ in own.items()} for name, own in seconds.items()}


def run_case(hidden_size: int, vocab_size: int, rounds: int, directory: Path) -> dict:
    """One model's row."""
    actor = open_actor(hidden_size, vocab_size)
    parameters = sum(p.numel() for p in actor.policy.parameters())
    found = measure(actor, directory, rounds)
    shutdown()
    shutil.rmtree(directory)
    ratios = {what: found["ours"][what] / found["deepspeed"][what] for what in ("save", "load")}
    return {"parameters": parameters, "bytes": 12 * parameters, **found, "ratio": ratios}


def format_row(row: dict) -> str:
    """One line for people."""
    ours, theirs, ratio = row["ours"], row["deepspeed"], row["ratio"]
    parts = [
        f"{what} ours {ours[what]:.3f} s, DeepSpeed {theirs[what]:.3f} s, ratio {ratio[what]:.2f}"
        for what in ("save", "load")
    ]
    return f"{row['parameters'] / 1e6:.1f}M parameters, {row['bytes'] / 1e6:.0f} MB   " + "   ".join(parts)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--hidden", nargs="+", type=positive, default=(64, 256), help="hidden sizes of the models")
    parser.add_argument("--vocab", nargs="+", type=positive, default=(3072, 151936), help="their vocabularies")
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--directory", help="on the disk to be timed; default: the system's temporary one")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.stdout.write(f"{hardware_name('cpu')}\n")
    rows = []
    for hidden_size, vocab_size in zip(args.hidden, args.vocab, strict=True):
        rows.append(run_case(hidden_size, vocab_size, args.rounds, Path(tempfile.mkdtemp(dir=args.directory))))
        sys.stdout.write(f"{format_row(rows[-1])}\n")
    if args.json:
        report = origin(hardware_name("cpu"), (*PACKAGES, "deepspeed"), sys.argv) | {"rows": rows}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
