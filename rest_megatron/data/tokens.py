"""The bytes behind token ids, and the ids that end an answer.

Rewards and regions read the sampled tokens themselves. Text is never tokenised again: ids that come back from a
second tokenisation are not always the ids the model sampled.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import decoders

from rest_megatron.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# End-of-turn tokens of ChatML and Llama 3, for a tokenizer.json that comes without the file that names its own. With
# the last one Llama 3 ends a turn that waits for a tool.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")


def token_bytes(tokenizer: "PreTrainedTokenizerBase", vocab_size: int | None = None) -> list[bytes]:
    """The raw bytes of every token id of a byte-level BPE tokenizer (Qwen, Llama 3, GPT-2).

    tokenizer: a Hugging Face fast tokenizer.
    vocab_size: length of the table, the model's vocabulary when that is larger than the tokenizer's; ids without
        a token map to b"". None: up to the tokenizer's last id.
    Added and special tokens map to their own text in UTF-8.
    Raises ConfigError for a tokenizer whose tokens are not bytes, or with an id outside the table.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.decoder, decoders.ByteLevel):
        raise ConfigError(
            f"{type(tokenizer).__name__} is not a byte-level BPE fast tokenizer, so its tokens have no exact bytes; "
            "use the model's own tokenizer.json (Qwen and Llama 3 ship a byte-level one)"
        )
    to_byte = _byte_alphabet()
    pieces = {}
    for text, index in backend.get_vocab(with_added_tokens=False).items():
        try:
            pieces[index] = bytes([to_byte[char] for char in text])
        except KeyError:
            pieces[index] = text.encode("utf-8")  # a special token listed in the base vocabulary
    for index, token in backend.get_added_tokens_decoder().items():
        pieces[index] = token.content.encode("utf-8")

    size = max(pieces) + 1 if vocab_size is None else vocab_size
    if max(pieces) >= size:
        raise ConfigError(
            f"the tokenizer has token id {max(pieces)} but the model's vocab_size is {size}; "
            "tokenizer and config.json must belong to the same model"
        )
    return [pieces.get(index, b"") for index in range(size)]


def stop_token_ids(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end an answer: the tokenizer's end-of-turn token and those of generation_config.json beside it.

    Where neither names one, those of the TURN_ENDS that the tokenizer has.
    Raises CheckpointError when generation_config.json cannot be read.
    """
    ids = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    ids.update(_listed_stops(directory / "generation_config.json"))
    if not ids:
        known = tokenizer.get_vocab()
        ids = {known[token] for token in TURN_ENDS if token in known}
    return sorted(ids)


def decode(ids: Iterable[int], table: Sequence[bytes]) -> bytes:
    """The bytes of `ids` in a row. They need not be valid UTF-8: a model may stop inside a character."""
    return b"".join(table[index] for index in ids)


def _listed_stops(path: Path) -> list[int]:
    """eos_token_id of a generation_config.json; none where there is no such file. Raises CheckpointError."""
    if not path.exists():
        return []
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a {type(settings).__name__}, must be an object")
    listed = settings.get("eos_token_id")
    ids = [] if listed is None else listed if isinstance(listed, list) else [listed]
    if any(type(token) is not int for token in ids):  # True is no token id
        raise CheckpointError(f"{path}: eos_token_id is {listed!r}, must be a token id, a list of them or null")
    return ids


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte as one printable character: itself if visible in Latin-1, else from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + rank): byte for rank, byte in enumerate(hidden)}
