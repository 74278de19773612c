"""The `weigh` command on rows of a tokenizer with one token per byte."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rest_megatron.commands import weigh
from rest_megatron.commands.catalogue import Weigh
from rest_megatron.config import load

# With one token per byte.
PARTS = [
    ("<think>", "format"),
    ("hm", "cot"),
    ('</think>\n<tool_call>\n{"name": "', "format"),
    ("f", "tool_name"),
    ('", "parameters": ', "format"),
    ('{"a": 1}', "parameters"),
    ("}\n</tool_call>", "format"),
]
ANSWER = "".join(text for text, _ in PARTS)
REGIONS = [region for text, region in PARTS for _ in text]


def save_byte_tokenizer(directory: Path) -> Path:
    """A byte-level tokenizer: ids 0 to 255 are bytes, 256 ends a turn, 257 pads."""
    alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})
    tokenizer.save_pretrained(directory)
    return directory


def encoder(directory: Path) -> Callable[[str], list[int]]:
    """From a text to its ids."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def weigh_rows(
    folder: Path, tokenizer_dir: Path, rows: Sequence, *overrides: str, **arguments
) -> tuple[list[dict], str]:
    """What the command writes for some rows, or lines, and what it reports. arguments: further options."""
    source, output = folder / "a.jsonl", folder / "b.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    source.write_text("".join(f"{line}\n" for line in lines))
    options = Weigh(**{"input": source, "output": output, "tokenizer": tokenizer_dir} | arguments)
    stream = io.StringIO()
    weigh.main(load([], overrides), options, stream)
    return [json.loads(line) for line in output.read_text().splitlines()], stream.getvalue()
