"""Tokens per second of the embedded sampler beside Hugging Face's `generate`, on the same tiny model.

    python benchmarks/rollout.py

Both sample the same number of tokens from the same prompts at temperature 1, with a key/value cache, in float32, on one
thread of the CPU, in turns; the CPU time of the fastest round of each counts. Answers never end early.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.floors import hardware_name
from benchmarks.kernels import positive
from benchmarks.origin import origin
from rest_megatron.config.schema import Config, ModelConfig, ParallelConfig, RolloutConfig, RunConfig
from rest_megatron.distributed.launch import Launch, free_port
from rest_megatron.distributed.startup import initialize, shutdown
from rest_megatron.model.huggingface import Safetensors, load_weights
from rest_megatron.model.model import Policy
from rest_megatron.rollout.engine import number_requests
from rest_megatron.rollout.sampler import Sampler

PROMPT_TOKENS = (16, 64)  # shortest and longest
VOCABULARIES = (3072, 151936)
PACKAGES = ("torch", "transformers", "megatron-core")


def make_model(directory: Path, vocab_size: int) -> Qwen3Config:
    """Save a random model of 4 layers and 128 hidden values."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return config


def make_prompts(count: int, vocab_size: int) -> list[list[int]]:
    """Random prompts of mixed lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1, (count,), generator=generator)
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths.tolist()]


def our_sampler(directory: Path, hf: Qwen3Config, prompts: list[list[int]], new_tokens: int) -> Callable[[int], int]:
    """A function that samples with a seed and returns the number of tokens."""
    rollout = RolloutConfig(max_new_tokens=new_tokens, max_batch_size=len(prompts))
    model = ModelConfig(path=str(directory), dtype="float32")
    config = Config(run=RunConfig(device="cpu"), model=model, rollout=rollout)
    launch = Launch(0, 1, 0, 1, "127.0.0.1", free_port(), "single")
    parallel = initialize(launch, ParallelConfig(), torch.device("cpu"), seed=0)
    hf.dtype = torch.float32
    policy = Policy(hf, config, parallel)
    load_weights(policy, Safetensors(directory, hf), parallel)
    sampler = Sampler(policy, parallel, rollout, stop_token_ids=())

    def run(seed: int) -> int:
        groups = sampler.generate(number_requests(prompts, new_tokens), group_size=1, seed=seed)
        return sum(len(sample.token_ids) for group in groups for sample in group)

    return run


def hugging_face(directory: Path, prompts: list[list[int]], new_tokens: int) -> Callable[[int], int]:
    """The same by `generate`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def run(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            use_cache=True,
        )
        return out[:, width:].numel()

    return run


def measure(contestants: dict[str, Callable[[int], int]], rounds: int) -> dict[str, dict[str, float]]:
    """Tokens, and CPU seconds of the fastest of `rounds` runs of each, in turns, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    tokens = {}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            gc.collect()
            started = time.process_time()
            tokens[name] = run(number)
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: {"tokens": tokens[name], "seconds": min(seconds[name])} for name in contestants}


def run_case(vocab_size: int, args: argparse.Namespace) -> dict:
    """One vocabulary's row."""
    with tempfile.TemporaryDirectory() as name:
        hf = make_model(Path(name), vocab_size)
        prompts = make_prompts(args.prompts, vocab_size)
        ours = our_sampler(Path(name), hf, prompts, args.new_tokens)
        theirs = hugging_face(Path(name), prompts, args.new_tokens)
        found = measure({"ours": ours, "hugging_face": theirs}, args.rounds)
    shutdown()
    speeds = {name: numbers["tokens"] / numbers["seconds"] for name, numbers in found.items()}
    return {
        "vocab_size": vocab_size,
        "prompts": args.prompts,
        "new_tokens": args.new_tokens,
        **found,
        "tokens_per_second": speeds,
        "ratio": speeds["ours"] / speeds["hugging_face"],
    }


def format_row(row: dict) -> str:
    """One line for people."""
    speeds = row["tokens_per_second"]
    return (
        f"V={row['vocab_size']:<7} {row['prompts']} prompts x {row['new_tokens']} tokens   "
        f"ours {speeds['ours']:7.0f} tokens/s   Hugging Face generate {speeds['hugging_face']:7.0f} tokens/s   "
        f"ratio {row['ratio']:.2f}"
    )


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--vocab", nargs="+", type=positive, default=VOCABULARIES, help="sizes of the vocabulary")
    parser.add_argument("--prompts", type=positive, default=32)
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--rounds", type=positive, default=5, help="timed runs of each; default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write every number to FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.stdout.write(f"{hardware_name('cpu')}\n")
    rows = []
    for vocab_size in args.vocab:
        rows.append(run_case(vocab_size, args))
        sys.stdout.write(f"{format_row(rows[-1])}\n")
    if args.json:
        report = origin(hardware_name("cpu"), PACKAGES, sys.argv) | {"rows": rows}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
